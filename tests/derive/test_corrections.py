"""What people changed, told from each form in which their masks come back."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import cli
from ovss_core.errors import ConfigError, StorageError
from pipelines.derive.corrections import brush_region, compare, read_corrections
from pipelines.derive.export import Export
from pipelines.derive.formats.base import Classes, safe_name
from pipelines.derive.formats.tools import brush_runs
from pipelines.derive.options import ExportOptions
from pipelines.label.reader import open_labels
from pipelines.storage import Folder
from tests.derive.plain import run_here, ten_labels
from tests.pipelines.test_dataset_card import VOCABULARY, segmentation

CLASSES = Classes(tuple(VOCABULARY.names), 255)


def report_on(labels: Path, masks: Path) -> dict[str, Any]:
    return compare(open_labels(str(labels)), read_corrections(Folder(str(masks)), CLASSES))


def repaint(mask: np.ndarray) -> np.ndarray:
    """Turn a corner of grass into sky, as a person might."""
    corner = np.zeros(mask.shape, bool)
    corner[10:20, 5:25] = True
    return np.where(corner & (mask == 1), 3, mask)


def expected_change() -> int:
    return sum(
        int((repaint(segmentation(n).label_map) != segmentation(n).label_map).sum()) for n in range(10)
    )


def assert_told(report: dict[str, Any]) -> None:
    masks = [segmentation(number).label_map for number in range(10)]
    before = sum(int((mask == 1).sum()) for mask in masks)
    changed = expected_change()
    assert (report["images"], report["changed"], report["failures"]) == (10, changed, {})
    grass = report["classes"]["<b>grass</b>"]
    assert (grass["before"], grass["after"], grass["stayed"]) == (before, before - changed, before - changed)
    assert grass["became"] == {"sky": changed}
    assert grass["iou"] == pytest.approx((before - changed) / before)
    assert report["classes"]["sky"] == {"before": 0, "after": changed, "stayed": 0, "iou": 0.0, "became": {}}
    assert report["classes"]["Zebra-Größe"]["iou"] == 1.0


@pytest.mark.parametrize("naming", [safe_name, lambda name: name.removesuffix(".jpg")])
def test_png_masks_with_a_palette_or_without_are_compared_pixel_by_pixel(tmp_path: Path, naming: Any) -> None:
    ten_labels(tmp_path / "labels")
    (tmp_path / "masks/below").mkdir(parents=True)
    for number in range(10):
        picture = Image.fromarray(repaint(segmentation(number).label_map))
        if number % 2:
            picture.putpalette(CLASSES.palette.tobytes())
        picture.save(tmp_path / f"masks/below/{naming(f'{number:02d}.jpg')}.png")
    assert_told(report_on(tmp_path / "labels", tmp_path / "masks"))


@pytest.mark.parametrize("form", ["label-studio", "cvat"])
def test_an_export_that_comes_back_untouched_has_no_change_and_a_repainted_one_has_it_told(
    tmp_path: Path, form: Any
) -> None:
    ten_labels(tmp_path / "labels")
    run_here(tmp_path / "labels", Export(ExportOptions(form)), tmp_path / "out")
    place = tmp_path / "out" / ("tasks" if form == "label-studio" else "annotations")
    report = report_on(tmp_path / "labels", place)
    assert (report["images"], report["changed"]) == (10, 0)

    from ovss_core.results import Segmentation
    from tests.derive.plain import write_labels

    painted = {
        f"{n:02d}.jpg": Segmentation(repaint(segmentation(n).label_map), segmentation(n).present)
        for n in range(10)
    }
    write_labels(tmp_path / "painted", painted)
    run_here(tmp_path / "painted", Export(ExportOptions(form)), tmp_path / "again")
    assert_told(report_on(tmp_path / "labels", tmp_path / "again" / place.name))


def test_what_a_person_annotated_counts_before_the_prediction(tmp_path: Path) -> None:
    ten_labels(tmp_path / "labels")
    size = segmentation(0).label_map.shape
    result = {
        "type": "brushlabels",
        "original_height": size[0],
        "original_width": size[1],
        "value": {"rle": brush_runs(np.ones(size, bool)), "brushlabels": ["sky"]},
    }
    task = {
        "data": {"image_id": "00.jpg"},
        "annotations": [{"result": [result]}],
        "predictions": [{"result": []}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/a.json").write_text(json.dumps([task]))
    report = report_on(tmp_path / "labels", tmp_path / "tasks")
    assert (report["images"], report["changed_share"]) == (1, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_brush_is_read_as_it_was_written(seed: int) -> None:
    region = np.random.default_rng(seed).random((13, 17)) < 0.2 * seed
    assert np.array_equal(brush_region(brush_runs(region), (13, 17)), region)


def test_masks_that_do_not_fit_are_named_and_the_others_are_compared(tmp_path: Path) -> None:
    ten_labels(tmp_path / "labels")
    (tmp_path / "masks").mkdir()
    good = segmentation(0).label_map
    for number, mask in enumerate((good, good[:-1], np.full_like(good, 9))):
        Image.fromarray(mask).save(tmp_path / f"masks/{number:02d}.png")
    Image.new("RGB", (32, 24)).save(tmp_path / "masks/03.png")
    (tmp_path / "masks/04.png").write_bytes(b"broken")
    report = report_on(tmp_path / "labels", tmp_path / "masks")
    assert (report["images"], report["changed"]) == (1, 0)
    reasons = report["failures"]
    assert set(reasons) == {f"{number:02d}.jpg" for number in range(1, 5)}
    assert reasons["01.jpg"] == "the mask is 32 x 23 pixels, the label 32 x 24"
    assert "value 9, which is no class" in reasons["02.jpg"]
    assert "mode RGB" in reasons["03.jpg"]


def test_a_folder_of_nothing_and_a_class_of_nobody_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no mask in"):
        read_corrections(Folder(str(tmp_path)), CLASSES)
    (tmp_path / "a.xml").write_text('<a><image name="x" width="1" height="1"><mask label="dog"/></image></a>')
    with pytest.raises(ConfigError, match="a class 'dog', which is none of the labels'"):
        read_corrections(Folder(str(tmp_path)), CLASSES)
    (tmp_path / "a.xml").write_text("<a>")
    with pytest.raises(StorageError, match=r"a\.xml of .* is no XML"):
        read_corrections(Folder(str(tmp_path)), CLASSES)


def test_the_command_tells_what_changed_and_keeps_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ten_labels(tmp_path / "labels")
    (tmp_path / "masks").mkdir()
    stream = io.BytesIO()
    Image.fromarray(repaint(segmentation(0).label_map)).save(stream, "PNG")
    (tmp_path / "masks/00.png").write_bytes(stream.getvalue())
    flags = f"evaluate --labels {tmp_path}/labels --masks {tmp_path}/masks --output {tmp_path}/told.json"
    assert cli.main(flags.split()) == 0
    told = capsys.readouterr().out
    assert "1 images compared" in told
    assert "became sky" in told
    assert json.loads((tmp_path / "told.json").read_text())["images"] == 1
