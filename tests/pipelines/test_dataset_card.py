"""The output's folder opened by other people's tools: what they take for data, and what they show."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from ovss_core.results import Confidence, PresentClass, Segmentation
from ovss_core.vocabulary import Vocabulary
from pipelines.label.card import header, write_card
from pipelines.label.masks import encode_mask
from pipelines.label.table import label_table
from pipelines.run.record import remove_run, write_run
from pipelines.run.runner import Job
from pipelines.sources import FolderSource
from tests.label_rows import label_row
from tests.pipelines.mean_color import MeanColor, mean_job
from tests.pipelines.plain_execution import run_plain
from tests.pipelines.test_shards import images

VOCABULARY = Vocabulary.from_names(["background", "<b>grass</b>", "Zebra-Größe", "sky"])


def segmentation(seed: int) -> Segmentation:
    generator = np.random.default_rng(seed)
    label_map = generator.integers(1, 3, (24, 32)).astype(np.uint8)
    label_map[:3] = 255
    present = tuple(
        PresentClass(index, VOCABULARY.names[index], int((label_map == index).sum()), 0.5, 0.75)
        for index in (1, 2)
    )
    margins = generator.integers(0, 256, label_map.shape).astype(np.uint8)
    return Segmentation(label_map, present, confidence=Confidence(0.75, 0.5, 0.25, 3 / 24, margins))


class Labeller(MeanColor):
    """Stands for the labelling stage: the labels follow from the length of the image's file."""

    def work(self, items: Any) -> list[dict[str, object]]:
        super().work(items)
        return [label_row(segmentation(len(data))) for _, data in items]


def label_job(folder: Path, output: Path, confidence: Any = "pixel", embed: bool = True) -> Job:
    job = mean_job(str(output), FolderSource(str(folder)))
    stages = [replace(stage, worker=Labeller) for stage in job.stages]
    table = label_table(VOCABULARY, confidence, embed)
    return replace(job, stages=stages, table=table, shard_size=3, file_bytes=1)


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output of seven images, one of them broken, with all that a run may leave behind."""
    monkeypatch.setattr("tests.pipelines.mean_color.result_type", lambda _: label_result())
    (tmp_path / "in").mkdir()
    for name, data in {**images(6), "bad.jpg": b"no image"}.items():
        (tmp_path / "in" / name).write_bytes(data)
    job = label_job(tmp_path / "in", tmp_path / "out")
    run_plain(job)
    write_card(job.output, job.table.schema, VOCABULARY)
    job.output.write("_previews/00000-mask.png", encode_mask(segmentation(0).label_map))
    job.output.write("_previews/index.html", b"<!doctype html>")
    return tmp_path / "out"


def label_result() -> Any:
    from pipelines.run.schema import LABELS, result_type

    return result_type(LABELS)


def test_masks_and_images_come_decoded_mapped_and_streamed_from_the_folder_alone(
    finished: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    cache = str(tmp_path / "cache")
    mapped = datasets.load_dataset(str(finished), split="train", cache_dir=cache)
    streamed = datasets.load_dataset(str(finished), split="train", streaming=True, cache_dir=cache)
    assert len(mapped) == 6
    for rows in (list(mapped), list(streamed)):
        assert [row["image_id"] for row in rows] == [f"{n:03d}.jpg" for n in range(6)]
        for row in rows:
            data = (tmp_path / "in" / row["image_id"]).read_bytes()
            expected = segmentation(len(data))
            assert expected.confidence is not None
            assert expected.confidence.margins is not None
            assert np.array_equal(np.asarray(row["mask"]), expected.label_map)
            assert np.array_equal(np.asarray(row["confidence"]), expected.confidence.margins)
            with Image.open(io.BytesIO(data)) as picture:
                assert np.array_equal(np.asarray(row["image"]), np.asarray(picture))
            assert set(row["words"]) == {"<b>grass</b>", "Zebra-Größe"}
            assert row["present"][0]["name"] in row["words"]


def test_nothing_but_the_labels_is_data_to_a_reader_that_searches_below_the_folder(finished: Path) -> None:
    found = ds.dataset(str(finished), format="parquet", exclude_invalid_files=True)
    assert {Path(file).parent.name for file in found.files} == {"labels"}
    assert found.count_rows() == 6
    assert {path.parent.name for path in finished.rglob("*.parquet")} == {"labels"}
    pictures = [path for path in finished.rglob("*.png") if not path.parent.name.startswith("_")]
    assert pictures == []


def test_sql_finds_words_in_all_parquet_files_below_the_folder(finished: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    query = f"select count(*) from read_parquet('{finished}/**/*.parquet') where list_contains(words, 'Zebra-Größe')"
    assert duckdb.sql(query).fetchall() == [(6,)]


def test_each_file_names_the_classes_and_the_value_of_no_label(finished: Path) -> None:
    for path in (finished / "labels").iterdir():
        metadata = pq.read_schema(path).metadata
        assert json.loads(metadata[b"ovss_classes"]) == list(VOCABULARY.names)
        assert metadata[b"ovss_ignore_index"] == b"255"
        assert metadata[b"ovss_schema"] == b"labels/2"


def test_masks_and_confidences_stay_pictures_of_one_gray_channel(finished: Path) -> None:
    for row in ds.dataset(str(finished / "labels")).to_table().to_pylist():
        for name in ("mask", "confidence"):
            with Image.open(io.BytesIO(row[name])) as picture:
                assert (picture.mode, picture.format) == ("L", "PNG")


@pytest.mark.parametrize(("confidence", "embed"), [("none", False), ("image", True), ("pixel", False)])
def test_a_table_has_the_columns_that_were_asked_for_and_the_card_names_them(
    confidence: Any, embed: bool
) -> None:
    table = label_table(VOCABULARY, confidence, embed)
    assert ("image" in table.schema.names) == embed == table.keeps_images
    assert ("confidence" in table.schema.names) == (confidence == "pixel")
    named = header(table.schema, VOCABULARY)["dataset_info"]["features"]
    assert [entry["name"] for entry in named] == table.schema.names


def test_a_card_that_somebody_edited_stays_and_goes_with_the_run_unless_it_was_replaced(
    tmp_path: Path,
) -> None:
    job = mean_job(str(tmp_path / "out"), FolderSource(str(tmp_path)))
    schema = label_table(VOCABULARY).schema
    write_run(job.output, {"job": "label"}, {})
    write_card(job.output, schema, VOCABULARY)
    written = job.output.read("README.md").decode()
    front = yaml.safe_load(written.split("---\n")[1])
    assert front["class_names"] == list(VOCABULARY.names)
    edited = written.replace("pretty_name", "license: cc-by-4.0\npretty_name")
    job.output.write("README.md", edited.encode())
    write_card(job.output, schema, VOCABULARY)
    assert job.output.read("README.md").decode() == edited
    remove_run(job.output, "labels")
    assert not job.output.exists("README.md")
    write_run(job.output, {"job": "label"}, {})
    job.output.write("README.md", b"my own words")
    remove_run(job.output, "labels")
    assert job.output.read("README.md") == b"my own words"
