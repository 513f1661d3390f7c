import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ovss_core.results import PresentClass, ScoredClass, Segmentation
from ovss_core.vocabulary import Vocabulary
from pipelines.label import pictures as previews
from pipelines.label.palette import class_colors
from pipelines.label.pictures import write_previews
from pipelines.label.table import label_table
from pipelines.run.fragments import write_fragment
from pipelines.run.manifest import prepare_manifest, refresh_manifest
from pipelines.run.manifest_files import Manifest, read_part
from pipelines.run.schema import FAILURES
from pipelines.run.shards import ShardReader
from pipelines.run.sink import FAILED, merge_part
from pipelines.run.work_units import ShardTask
from pipelines.sources import FolderSource, Source, WebDatasetSource
from pipelines.storage import Folder
from tests.label_rows import label_row
from tests.pipelines.test_shards import images, write_shard

VOCABULARY = Vocabulary.from_names(["background", "cat", "<b>grass</b>"])
SIZE = (24, 32)
ImageFolder = Callable[..., Path]


def segmentation(size: tuple[int, int] = SIZE) -> Segmentation:
    label_map = np.ones(size, np.uint8)
    return Segmentation(
        label_map,
        present=(PresentClass(1, "cat", label_map.size, 1.0, 0.5),),
        kept=(ScoredClass(0, "background", float("nan")), ScoredClass(1, "cat", 0.25)),
        removed=(ScoredClass(2, "<b>grass</b>", 0.125),),
    )


def finished_run(folder: Path, labelled: set[int], shard_size: int = 2) -> tuple[Folder, Source, Manifest]:
    """Leave behind what a run does whose images of these numbers could be labelled."""
    output, source = Folder(str(folder.parent / "out")), FolderSource(str(folder))
    manifest = prepare_manifest(output, source, shard_size)
    finish(output, manifest, labelled)
    return output, source, manifest


def finish(output: Folder, manifest: Manifest, labelled: set[int]) -> None:
    number = 0
    for part in manifest.parts:
        good, bad = [], []
        for row in read_part(output, part).to_pylist():
            names = {"image_id": row["image_id"], "uri": row["uri"]}
            if number in labelled:
                good.append(names | label_row(segmentation()))
            else:
                bad.append(names | {"stage": "decode", "error_type": "ImageError", "reason": "<i>broken</i>"})
            number += 1
        stored = label_table(VOCABULARY).schemas["labels"]
        tables = {"labels": pa.Table.from_pylist(good, stored), FAILED: pa.Table.from_pylist(bad, FAILURES)}
        write_fragment(output, part, tables, {})
        merge_part(output.uri, part, label_table(VOCABULARY))


def page_of(output: Folder) -> str:
    return output.read("_previews/index.html").decode()


def test_a_run_that_labelled_no_image_gets_a_page_without_pictures(image_folder: ImageFolder) -> None:
    output, source, manifest = finished_run(image_folder(4), set())
    assert write_previews(output, source, manifest, VOCABULARY, 3) == 0
    page = page_of(output)
    assert "No image of this run can be shown" in page
    assert page.count("&lt;i&gt;broken&lt;/i&gt;") == 4
    assert output.names("_previews") == ["index.html"]


def test_pictures_come_from_the_parts_that_have_some(image_folder: ImageFolder) -> None:
    output, source, manifest = finished_run(image_folder(8), {5, 6, 7})
    assert write_previews(output, source, manifest, VOCABULARY, 1) == 1
    assert write_previews(output, source, manifest, VOCABULARY, 9) == 3
    page = page_of(output)
    assert "&lt;b&gt;grass&lt;/b&gt; 0.12" in page
    assert "<li>background</li>" in page
    assert "nan" not in page


def test_pictures_of_compressed_shards_are_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = {"plain.tar": "w", "a.tar.gz": "w:gz", "cut.tar.gz": "w:gz"}
    for position, (name, mode) in enumerate(shards.items()):
        write_shard(tmp_path / "s" / name, images(3, 3 * position), mode)
    output, source = Folder(str(tmp_path / "out")), WebDatasetSource(str(tmp_path / "s"))
    manifest = prepare_manifest(output, source, 2)
    reader = ShardReader(output, source.uri, source.fields, 1 << 20, 2)
    for number, name in enumerate(manifest.containers):
        assert sum(table.num_rows for table in reader.read(ShardTask(number, name, b"", {}))) == 3
    manifest = refresh_manifest(output, manifest)
    finish(output, manifest, set(range(9)))
    assert write_previews(output, source, manifest, VOCABULARY, 9) == 9
    (tmp_path / "s/cut.tar.gz").unlink()
    with caplog.at_level(logging.WARNING):
        assert write_previews(output, source, manifest, VOCABULARY, 9) == 6
    assert "no preview of cut.tar.gz: no such file" in caplog.text


def test_a_picture_that_has_changed_since_costs_a_warning(
    image_folder: ImageFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = image_folder(4)
    output, source, manifest = finished_run(folder, {0, 1, 2, 3})
    (folder / "0000.jpg").write_bytes(b"something else now")
    (folder / "0001.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        assert write_previews(output, source, manifest, VOCABULARY, 4) == 2
    assert "no preview of 0000.jpg: the data is no image" in caplog.text


@pytest.mark.parametrize("error", [OSError("disk full"), KeyError("x"), ValueError("odd"), MemoryError()])
def test_whatever_goes_wrong_with_previews_is_a_line_of_the_log(
    image_folder: ImageFolder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    output, source, manifest = finished_run(image_folder(2), {0, 1})

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(previews, "_page", fail)
    with caplog.at_level(logging.WARNING):
        assert write_previews(output, source, manifest, VOCABULARY, 2) == 0
    assert "the previews could not be written" in caplog.text
    assert "the labels are complete" in caplog.text


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (700, 2)])
def test_pictures_of_any_shape_are_drawn(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (size[1], size[0]))
    drawn = previews.draw(picture, label_row(segmentation(size)), class_colors(VOCABULARY), 0)
    assert {image.size for image in drawn.values()} == {drawn["image"].size}
    assert max(drawn["image"].size) <= 420
