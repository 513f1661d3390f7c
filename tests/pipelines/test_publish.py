"""Finished parts in files for readers, and back."""

import json
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovss_core.errors import OutputMismatchError
from pipelines.run.fragments import ROW_GROUP, encode_parquet
from pipelines.run.publish import (
    part_file,
    plan_files,
    publish,
    read_part_rows,
    read_published,
    take_back,
)
from pipelines.run.record import OLDER, check_identity, remove_run
from pipelines.run.state_files import DamagedFileError
from pipelines.run.verify import verify_output
from pipelines.storage import Folder
from tests.pipelines.mean_color import SCHEMA
from tests.pipelines.plain_execution import run_plain as run
from tests.pipelines.test_crash_points import make_input

COUNTS = {"part-00000": 3, "part-00001": ROW_GROUP + 1, "part-00003": 2}


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    """An output with three finished parts that lie by themselves."""
    folder = Folder(str(tmp_path / "out"))
    for part, rows in COUNTS.items():
        ids = [f"{part}/{row}" for row in range(rows)]
        columns = {"image_id": ids, "uri": ids, "mean": [1.0] * rows, "png": [b"x"] * rows}
        folder.write(part_file(part), encode_parquet(pa.table(columns, schema=SCHEMA)))
    return folder


def ids_of(folder: Folder, part: str) -> list[str]:
    ids: list[str] = read_part_rows(folder, part, read_published(folder, "means"))["image_id"].to_pylist()
    return ids


def test_parts_are_put_together_and_each_is_found_again_there_and_after_it_was_taken_back(
    output: Folder,
) -> None:
    before = {part: ids_of(output, part) for part in COUNTS}
    publish(output.uri, "means", SCHEMA, 0, COUNTS)
    assert output.names("_parts") == []
    published = read_published(output, "means")
    assert published.files == {"means/means-00000.parquet": COUNTS}
    assert [published.rows_of(part) for part in COUNTS] == list(COUNTS.values())
    assert {part: ids_of(output, part) for part in COUNTS} == before
    stored = pq.read_table(pa.BufferReader(output.read("means/means-00000.parquet")))
    assert stored["image_id"].to_pylist() == [*chain.from_iterable(before.values())]
    assert stored.schema.metadata[b"ovss_schema"] == b"means/1"

    take_back(output, SCHEMA, "means/means-00000.parquet", COUNTS)

    assert output.names("means") == []
    assert {part: ids_of(output, part) for part in COUNTS} == before


def test_a_task_that_is_run_again_leaves_the_file_as_it_is(output: Folder) -> None:
    publish(output.uri, "means", SCHEMA, 0, COUNTS)
    before = output.read("means/means-00000.parquet")
    publish(output.uri, "means", SCHEMA, 0, COUNTS)
    assert output.read("means/means-00000.parquet") == before


def test_a_part_that_lacks_rows_is_not_published(output: Folder) -> None:
    with pytest.raises(DamagedFileError, match="it has 3 rows instead of 4"):
        publish(output.uri, "means", SCHEMA, 0, {"part-00000": 4})
    assert output.names("means") == []
    assert len(ids_of(output, "part-00000")) == 3


def test_what_is_damaged_in_a_published_file_does_not_come_back_and_neither_does_an_older_copy(
    output: Folder,
) -> None:
    older = output.read(part_file("part-00001"))
    publish(output.uri, "means", SCHEMA, 0, COUNTS)
    data = bytearray(output.read("means/means-00000.parquet"))
    group = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(1)
    ids = group.column(0)
    data[ids.dictionary_page_offset + ids.total_compressed_size - 2] ^= 1
    output.write("means/means-00000.parquet", bytes(data))
    output.write(part_file("part-00001"), older)
    with pytest.raises(DamagedFileError):
        read_part_rows(output, "part-00001", read_published(output, "means"))

    take_back(output, SCHEMA, "means/means-00000.parquet", COUNTS)

    assert output.names("_parts") == ["part-00000.pq", "part-00003.pq"]


def test_a_copy_of_a_published_file_does_not_count_and_a_cut_one_is_named(output: Folder) -> None:
    publish(output.uri, "means", SCHEMA, 0, COUNTS)
    whole = output.read("means/means-00000.parquet")
    output.write("means/means-00001.parquet", whole)
    output.write("means/means-00002.parquet", whole[:-9])
    published = read_published(output, "means")
    assert list(published.files) == ["means/means-00000.parquet"]
    assert list(published.damaged) == ["means/means-00002.parquet"]
    assert set(published.places.values()) == {"means/means-00000.parquet"}


@pytest.mark.parametrize(
    ("sizes", "files"),
    [
        ([], []),
        ([1], [1]),
        ([40, 40, 40, 40], [2, 2]),
        ([40, 40, 10, 40, 40, 10], [3, 3]),
        ([40, 40, 10, 30], [4]),
        ([300, 10, 300, 50], [1, 1, 1, 1]),
    ],
)
def test_files_are_about_as_large_as_asked_and_the_last_is_not_tiny(
    sizes: list[int], files: list[int]
) -> None:
    parts = [(f"part-{number:05d}", size) for number, size in enumerate(sizes)]
    planned = plan_files(parts, 100)
    assert [len(file) for file in planned] == files
    assert [*chain.from_iterable(planned)] == [part for part, _ in parts]


def test_an_output_of_the_first_layout_is_refused_in_one_line_kept_and_replaced_on_demand(
    tmp_path: Path,
) -> None:
    job = make_input("folder", tmp_path / "in")(tmp_path / "in", tmp_path / "out")
    older = {
        OLDER: json.dumps({"version": 2}),
        "run.json": json.dumps({"identity": {"job": "means"}}),
        "manifest/part-00000.parquet": "-",
        "means/part-00000.parquet": "-",
        "failures/part-00000.parquet": "-",
        "_done/part-00000.json": "{}",
    }
    for name, text in older.items():
        job.output.write(name, text.encode())
    with pytest.raises(OutputMismatchError, match=r"begun by an older version .*--overwrite") as refused:
        check_identity(job.output, {"job": "means"})
    assert "\n" not in str(refused.value)
    [problem] = verify_output(job.output).problems
    assert "older version" in problem
    assert all(job.output.exists(name) for name in older)

    run(job, overwrite=True)

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("_done", "_failures", "_manifest", "means", "run.json", "summary.json")
    ]
    assert verify_output(job.output, content=True).problems == []
    remove_run(job.output, "means")
    assert list((tmp_path / "out").iterdir()) == []
