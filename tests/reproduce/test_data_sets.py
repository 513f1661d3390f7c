"""Finding the papers' data sets in a folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovss_core.errors import StorageError
from ovss_core.evaluation.benchmarks import BENCHMARKS
from pipelines.evaluate.pairs import BenchmarkSource
from pipelines.reproduce.data_sets import find_data_sets
from tests.reproduce.data_tree import ADE, CITY, OBJECT, STUFF, VOC, draw_data

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def found_in(data: Path) -> dict[str, str | None]:
    return {entry.name: entry.root for entry in find_data_sets(str(data))}


def test_all_eight_are_found_in_mmsegmentations_layouts_with_labels_of_their_classes(tmp_path: Path) -> None:
    data = draw_data(tmp_path)
    for entry in find_data_sets(str(data)):
        assert entry.is_there, entry
        assert entry.images == 2
        source = BenchmarkSource(entry.benchmark, str(entry.root))
        records = list(source.records())
        assert len(records) == 2
        for record in records:
            assert record.path is not None
            assert Path(record.path).is_file()
            labels = source.conversion(np.asarray(Image.open(f"{entry.root}/{record.annotation}")))
            assert labels.max() == entry.benchmark.classes - 1


def test_a_data_set_may_lie_in_a_folder_of_its_own_or_be_the_folder(tmp_path: Path) -> None:
    draw_data(tmp_path, [VOC])
    shutil.move(tmp_path / VOC, tmp_path / "voc2012")
    there = {name for name, root in found_in(tmp_path).items() if root == f"{tmp_path}/voc2012"}
    assert there == {"voc21", "voc20"}
    assert found_in(tmp_path / "voc2012")["voc20"] == str(tmp_path / "voc2012")


def test_what_is_missing_says_what_was_looked_for_and_where_people_get_it(tmp_path: Path) -> None:
    data = draw_data(tmp_path, [OBJECT, CITY])
    entries = {entry.name: entry for entry in find_data_sets(str(data))}
    assert {name for name, entry in entries.items() if entry.is_there} == {"coco_object", "cityscapes"}
    for name, entry in entries.items():
        assert "https://" in entry.benchmark.origin or "http://" in entry.benchmark.origin
        assert not entry.problem, name
    assert "annotations/validation/*.png" in entries["ade20k"].expected
    assert "pascal_context.py" in entries["context59"].benchmark.origin


def test_a_data_set_with_some_masks_lacking_is_named_with_that(tmp_path: Path) -> None:
    data = draw_data(tmp_path, [ADE, STUFF])
    (data / ADE / "annotations/validation/b.png").unlink()
    entries = {entry.name: entry for entry in find_data_sets(str(data))}
    assert not entries["ade20k"].is_there
    assert "1 of 2 images have no mask" in entries["ade20k"].problem
    assert not entries["coco_object"].problem


def test_nothing_there_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(StorageError, match=r"^none of voc21, .*cityscapes lies in .*VOCdevkit/VOC2012"):
        find_data_sets(str(tmp_path))
    with pytest.raises(StorageError, match=r"^no such folder: .*; check --data"):
        find_data_sets(str(tmp_path / "nowhere"))


def test_an_address_keeps_its_options_behind_the_folder(tmp_path: Path) -> None:
    draw_data(tmp_path / "below", [ADE])
    entries = {entry.name: entry for entry in find_data_sets(f"file://{tmp_path}")}
    assert entries["ade20k"].root == f"file://{tmp_path}/below"


@pytest.mark.skipif(not SHARED.is_dir(), reason="no photographs are shared here")
def test_shared_photographs_are_found() -> None:
    sizes = {entry.name: entry.images for entry in find_data_sets(str(SHARED)) if entry.is_there}
    assert sizes == {"voc21": 121, "voc20": 121, "coco_object": 35, "ade20k": 9}
    assert set(sizes) < set(BENCHMARKS)
