"""Labels read back, with their images from wherever those lie."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from ovss_core.errors import ConfigError, StorageError
from ovss_core.images.decode import decode_image
from pipelines.label.reader import LabelFiles, open_labels
from pipelines.run.schema import LABELS, LOCATION
from pipelines.sources import FolderSource, ParquetSource, Source, WebDatasetSource
from tests.pipelines.plain_execution import run_plain
from tests.pipelines.test_dataset_card import VOCABULARY, label_job, label_result, segmentation
from tests.pipelines.test_shards import images, write_shard

IMAGES = images(7)


def write_source(kind: str, folder: Path) -> Source:
    folder.mkdir()
    if kind == "parquet":
        table = pa.table({"picture": list(IMAGES.values()), "name": list(IMAGES)})
        pq.write_table(table, folder / "t.parquet", row_group_size=4)
        return ParquetSource(str(folder), "picture", "name")
    if kind.startswith("tar"):
        write_shard(folder / f"a.{kind}", IMAGES, "w:gz" if kind.endswith("gz") else "w")
        return WebDatasetSource(str(folder))
    for name, data in IMAGES.items():
        (folder / name).write_bytes(data)
    return FolderSource(str(folder))


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> LabelFiles:
    """The output of a run over seven images of a kind of source, in several files."""
    monkeypatch.setattr("tests.pipelines.mean_color.result_type", lambda _: label_result())
    kind, _, embedded = getattr(request, "param", "folder").partition(" ")
    source = write_source(kind, tmp_path / "in")
    job = replace(label_job(tmp_path / "in", tmp_path / "out", embed=bool(embedded)), source=source)
    run_plain(job)
    return open_labels(str(tmp_path / "out"))


@pytest.mark.parametrize("labelled", ["folder", "tar", "tar.gz", "parquet", "tar.gz embedded"], indirect=True)
def test_each_image_is_fetched_from_where_its_row_says_that_it_lies(
    labelled: LabelFiles, tmp_path: Path
) -> None:
    if labelled.schema.names[-1] == "image":
        for path in (tmp_path / "in").iterdir():
            path.unlink()
    found = {row["image_id"].rpartition("/")[2].partition(".")[0]: row for row in labelled.rows()}
    assert len(found) == len(labelled) == 7
    for name, data in IMAGES.items():
        row = found[name.partition(".")[0]]
        assert (row["uri"].endswith(name)) == (row["container"] is None)
        assert labelled.image_of(row) == data


def test_a_loader_of_torch_gets_tensors_by_number_and_in_a_stream_with_workers(labelled: LabelFiles) -> None:
    rows = labelled.torch(("image_id", "mask", "confidence", "words"), images=True)
    streamed = labelled.stream(("image_id", "mask", "confidence", "words"), images=True)
    assert len(rows) == 7
    for sample in (rows[6], rows[0], rows[-2], next(iter(streamed))):
        data = IMAGES[sample["image_id"]]
        expected = segmentation(len(data))
        assert sample["mask"].dtype == torch.int64
        assert np.array_equal(sample["mask"].numpy(), expected.label_map)
        assert np.array_equal(sample["pixels"].numpy().transpose(1, 2, 0), decode_image(data, 10**6))
        assert sample["words"] == ["<b>grass</b>", "Zebra-Größe"] or sample["words"][::-1] == [
            "<b>grass</b>",
            "Zebra-Größe",
        ]
    with pytest.raises(IndexError, match="there are 7 rows; no row 7"):
        rows[7]
    loader = DataLoader(labelled.stream(("image_id",)), batch_size=None, num_workers=2)
    assert sorted(sample["image_id"] for sample in loader) == sorted(IMAGES)


def test_a_stream_is_shuffled_the_same_way_by_the_same_seed_and_a_transform_sees_each_sample(
    labelled: LabelFiles,
) -> None:
    def names(seed: int | None) -> list[str]:
        return list(labelled.stream(("image_id",), transform=lambda sample: sample["image_id"], seed=seed))

    assert names(None) == sorted(IMAGES)
    assert names(3) == names(3) != names(4)
    assert sorted(names(3)) == sorted(IMAGES)


def test_arrow_reads_the_same_rows_and_filters_them(labelled: LabelFiles) -> None:
    assert labelled.arrow.count_rows() == 7
    table = labelled.arrow.to_table(columns=["image_id", "margin"], filter=pa.compute.field("margin") > 0.4)
    assert table.num_rows == 7
    assert labelled.class_names == tuple(VOCABULARY.names)
    assert labelled.ignore_index == 255


def older_output(folder: Path) -> None:
    """Write what the first version of the table looked like, of an output with the first layout."""
    old = ("image_id", "uri", "height", "width", "mask", "present", "kept", "removed", "groups")
    schema = pa.schema([LABELS.field(name) for name in old], {b"ovss_schema": b"labels/1"})
    from tests.label_rows import label_row

    for number in range(2):
        names = {"image_id": f"{number}.jpg", "uri": f"/in/{number}.jpg"}
        row = {
            name: value for name, value in (names | label_row(segmentation(number))).items() if name in old
        }
        path = folder / f"labels/part-{number:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row], schema=schema), path)
    classes = [{"name": name, "phrases": [name]} for name in VOCABULARY.names]
    (folder / "run.json").write_text(json.dumps({"identity": {"vocabulary": classes}}))


def test_labels_of_the_first_version_are_read_with_what_follows_from_them(tmp_path: Path) -> None:
    older_output(tmp_path)
    labels = open_labels(str(tmp_path))
    assert (labels.version, len(labels), labels.class_names) == ("labels/1", 2, tuple(VOCABULARY.names))
    for number, row in enumerate(labels.rows()):
        assert set(row["words"]) == {"<b>grass</b>", "Zebra-Größe"}
        assert [row[name] for name in (*LOCATION, "margin", "confidence", "image")] == [None] * 9
        sample = labels.torch()[number]
        assert np.array_equal(sample["mask"].numpy(), segmentation(number).label_map)
    assert labels.arrow.count_rows() == 2


def test_what_is_no_output_of_labels_is_refused_in_one_line(tmp_path: Path, labelled: LabelFiles) -> None:
    with pytest.raises(StorageError, match="no labels under"):
        open_labels(str(tmp_path / "in"))
    with pytest.raises(ConfigError, match="no column 'colour'"):
        list(labelled.rows(["colour"]))
    with pytest.raises(StorageError, match=r"no image for gone\.jpg: no such file"):
        labelled.image_of({"image_id": "gone.jpg", "uri": str(tmp_path / "gone.jpg")})
