import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from ovss_core.errors import OvssError
from pipelines.run.fragments import encode_parquet, finished_ids
from pipelines.run.manifest import Manifest, prepare_manifest
from pipelines.run.publish import publish
from pipelines.run.schema import CARRIER, FAILURES, LABELS, result_type
from pipelines.run.sink import WriteFragments, merge_part, reopen_parts
from pipelines.run.summary import add_statistics, write_summary
from pipelines.sources import FolderSource
from pipelines.storage import Folder
from tests.pipelines.mean_color import MEANS, SCHEMA

PART = "part-00000"


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    """An output whose manifest has the images a, b, c, d in one part."""
    (tmp_path / "images").mkdir()
    for name in "abcd":
        (tmp_path / f"images/{name}.jpg").write_bytes(b"")
    folder = Folder(str(tmp_path / "out"))
    prepare_manifest(folder, FolderSource(str(tmp_path / "images")), 10)
    return folder


def finished(ids: str, part: str = PART, failed: str = "", seconds: float = 1.0) -> pa.Table:
    """Rows as the last stage hands them to the sink."""
    failure = {"stage": "mean", "error_type": "ImageError", "reason": "bad"}
    columns = {
        "part": [part] * len(ids),
        "image_id": [f"{name}.jpg" for name in ids],
        "uri": [f"/{name}.jpg" for name in ids],
        "failure": [failure if name in failed else None for name in ids],
        "seconds": [[("mean", seconds)], *[None] * (len(ids) - 1)],
        "part_images": [None] * len(ids),
        "result": [None if name in failed else {"mean": float(ord(name)), "png": b"x"} for name in ids],
    }
    kept = [entry for entry in CARRIER if entry.name not in ("annotation", "image")]
    return pa.table(columns, schema=pa.schema([*kept, pa.field("result", result_type(SCHEMA))]))


def test_a_part_is_published_in_manifest_order_once_all_its_images_are_there(output: Folder) -> None:
    writer = WriteFragments(output.uri, MEANS)
    assert writer.write(finished("db")).to_pylist() == [
        {"part": PART, "labelled": 2, "failed": 0, "part_images": None, "reasons": "{}"}
    ]
    assert merge_part(output.uri, PART, MEANS) == {"part": PART, "missing": 2}
    assert not output.exists("means")
    assert finished_ids(output, PART) == {"b.jpg", "d.jpg"}

    writer.write(finished("ca", failed="c"))
    marker = merge_part(output.uri, PART, MEANS)

    assert (marker["labelled"], marker["failed"], marker["seconds"]) == (3, 1, {"mean": 2.0})
    assert marker["statistics"] == {"sum_of_means": float(ord("a") + ord("b") + ord("d"))}
    table = pq.read_table(pa.BufferReader(output.read("_parts/part-00000.pq")))
    assert table["image_id"].to_pylist() == ["a.jpg", "b.jpg", "d.jpg"]
    assert table.schema.metadata == SCHEMA.metadata
    failures = pq.read_table(pa.BufferReader(output.read("_failures/part-00000.pq")))
    assert failures.to_pylist() == [
        {"image_id": "c.jpg", "uri": "/c.jpg", "stage": "mean", "error_type": "ImageError", "reason": "bad"}
    ]
    assert not output.exists("_fragments/part-00000")


def test_rows_that_were_written_twice_count_once_and_a_label_beats_a_failure(output: Folder) -> None:
    writer = WriteFragments(output.uri, MEANS)
    for rows in (finished("ab"), finished("ab"), finished("bcd", failed="bd"), finished("cd")):
        writer.write(rows)
    marker = merge_part(output.uri, PART, MEANS)
    assert (marker["images"], marker["labelled"], marker["failed"]) == (4, 4, 0)


def test_a_row_of_an_image_that_the_part_does_not_have_is_named_and_passed_over(
    output: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    WriteFragments(output.uri, MEANS).write(finished("abcdz"))
    marker = merge_part(output.uri, PART, MEANS)
    assert "holds 1 images that are not of this part, such as 'z.jpg'" in caplog.text
    assert (marker["images"], marker["labelled"], marker["failed"]) == (4, 4, 0)
    table = pq.read_table(pa.BufferReader(output.read("_parts/part-00000.pq")))
    assert table["image_id"].to_pylist() == [f"{name}.jpg" for name in "abcd"]


def test_reopening_a_part_keeps_its_labels_and_forgets_its_failures(output: Folder) -> None:
    WriteFragments(output.uri, MEANS).write(finished("abcd", failed="c"))
    merge_part(output.uri, PART, MEANS)
    before = output.read("_parts/part-00000.pq")

    reopen_parts(output, [PART], MEANS)

    assert finished_ids(output, PART) == {"a.jpg", "b.jpg", "d.jpg"}
    assert not output.exists("_done/part-00000.json")
    assert output.read("_parts/part-00000.pq") == before
    WriteFragments(output.uri, MEANS).write(finished("c"))
    marker = merge_part(output.uri, PART, MEANS)
    assert (marker["labelled"], marker["failed"], marker["seconds"]) == (4, 0, {"mean": 2.0})
    assert not output.exists("_failures/part-00000.pq")


def test_counts_that_do_not_add_up_are_an_error(output: Folder) -> None:
    WriteFragments(output.uri, MEANS).write(finished("abcd"))
    merge_part(output.uri, PART, MEANS)
    assert write_summary(output, Manifest({PART: 4}), {})["labelled"] == 4
    with pytest.raises(OvssError, match="5 images in the manifest, 4 in finished parts"):
        write_summary(output, Manifest({PART: 4, "part-00001": 1}), {})
    assert json.loads(output.read("summary.json"))["images"] == 5


def test_statistics_add_up_level_by_level() -> None:
    total: dict[str, object] = {}
    add_statistics(total, {"pixels": 3, "classes": {"cat": {"images": 1}}})
    add_statistics(total, {"pixels": 4, "classes": {"cat": {"images": 2}, "dog": {"images": 1}}})
    assert total == {"pixels": 7, "classes": {"cat": {"images": 3}, "dog": {"images": 1}}}


def test_compressed_columns_are_not_compressed_twice_and_the_schema_is_documented() -> None:
    for schema, raw in ((LABELS, ["mask", "confidence", "image"]), (FAILURES, [])):
        stored = pq.read_schema(pa.BufferReader(encode_parquet(schema.empty_table())))
        assert stored.equals(schema)
        assert stored.metadata == schema.metadata
        assert [entry.metadata for entry in stored] == [entry.metadata for entry in schema]
        assert all(entry.metadata[b"description"] for entry in schema)
        assert [entry.name for entry in schema if pa.types.is_binary(entry.type)] == raw
    table = pa.table({"mask": [b"abc" * 99] * 3, "n": [1, 2, 3]})
    group = pq.ParquetFile(pa.BufferReader(encode_parquet(table))).metadata.row_group(0)
    assert [group.column(place).compression for place in range(2)] == ["UNCOMPRESSED", "ZSTD"]


def test_a_folder_of_finished_files_is_one_dataset_for_any_reader(output: Folder) -> None:
    WriteFragments(output.uri, MEANS).write(finished("abcd", failed="d"))
    merge_part(output.uri, PART, MEANS)
    publish(output.uri, "means", SCHEMA, 0, {PART: 3})
    assert ds.dataset(f"{output.uri}/means").count_rows() == 3
