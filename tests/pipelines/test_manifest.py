import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovss_core.errors import OutputMismatchError
from pipelines.run.id_set import IdSet, digests_of, distinct, in_parts
from pipelines.run.id_set import Listed as ListedRows
from pipelines.run.manifest import prepare_manifest, read_part
from pipelines.run.manifest_files import COMPLETE, write_part
from pipelines.run.plan import plan_work
from pipelines.run.runner import plan_job
from pipelines.run.work_units import ShardTask
from pipelines.sources import FolderSource, ImageRecord, ParquetSource, WebDatasetSource
from pipelines.sources.fetch import ImageFetcher
from pipelines.storage import Folder
from tests.conftest import encode_image
from tests.pipelines.mean_color import MEANS, mean_job
from tests.pipelines.plain_execution import rows_of, run_plain
from tests.pipelines.test_shards import images, write_shard


class Listed:
    """A source that lists what it is told."""

    uri, ignored = "/", 0

    def __init__(self, *ids: str) -> None:
        self.ids = ids

    def describe(self) -> dict[str, Any]:
        return {"uri": "/"}

    def fetcher(self, max_bytes: int, timeout_s: float) -> ImageFetcher:
        return ImageFetcher(self.uri, max_bytes=max_bytes, timeout_s=timeout_s)

    def containers(self) -> None:
        return None

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        return (ImageRecord(name, f"/{name}", "file", f"/{n}") for n, name in enumerate(self.ids))


def ids_of(output: Folder) -> list[str]:
    names = [name.removesuffix(".pq") for name in output.names("_manifest") if name.startswith("part-")]
    return [i for name in names for i in read_part(output, name)["image_id"].to_pylist()]


def test_an_id_that_a_listing_gives_twice_becomes_two_ids_and_the_same_ones_on_the_next_start(
    tmp_path: Path,
) -> None:
    output = Folder(str(tmp_path / "out"))
    prepare_manifest(output, Listed("a", "b", "a", "a#2", "a"), 2)
    assert ids_of(output) == ["a", "b", "a#2", "a#2#2", "a#3"]
    manifest = prepare_manifest(output, Listed("a", "b", "a", "a#2", "a", "c"), 2)
    assert (manifest.appended, manifest.gone) == (1, 0)
    assert ids_of(output) == ["a", "b", "a#2", "a#2#2", "a#3", "c"]


def test_lists_of_a_start_that_was_killed_do_not_double_an_image_when_the_manifest_is_damaged_later(
    tmp_path: Path,
) -> None:
    output = Folder(str(tmp_path / "out"))
    prepare_manifest(output, Listed(*"abcd"), 2)
    before = output.read(COMPLETE)
    prepare_manifest(output, Listed(*"abcdefghij"), 2)
    output.write(COMPLETE, before)  # what a kill before the last write leaves
    prepare_manifest(output, Listed(*"abcdij"), 2)
    output.write(COMPLETE, before[: len(before) // 2])
    prepare_manifest(output, Listed(*"abcdij"), 2)
    assert sorted(ids_of(output)) == list("abcdij")


def test_a_list_with_an_id_twice_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comes twice"):
        write_part(Folder(str(tmp_path)), "part-00000", [ImageRecord("a", "/a", "file")] * 2)


def test_ids_are_told_apart_over_many_batches() -> None:
    seen = IdSet()
    records = (ImageRecord(f"{n % 9000}", "/", "file") for n in range(18_000))
    ids = [row.image_id for listed in distinct(records, seen) for row in listed.records]
    assert ids[:9000] == [f"{n}" for n in range(9000)]
    assert ids[9000:] == [f"{n}#2" for n in range(9000)]
    assert seen.holds(digests_of(ids)).all()
    assert "9000" not in seen


@pytest.mark.parametrize("counts", [[], [0], [5], [3, 0, 4, 1], [9, 1], [1] * 7])
def test_parts_hold_so_many_records_in_order_each_with_its_digest(counts: list[int]) -> None:
    records = [ImageRecord(f"{n}", "/", "file") for n in range(sum(counts))]
    ends = np.cumsum([0, *counts])
    listed = [records[start:end] for start, end in pairwise(ends)]
    parts = list(in_parts([ListedRows(rows, digests_of([r.image_id for r in rows])) for rows in listed], 3))
    assert [row for part in parts for row in part.records] == records
    assert [len(part.records) for part in parts[:-1]] == [3] * (len(parts) - 1)
    assert all(0 < len(part.records) == len(part.digests) for part in parts)
    assert np.concatenate([np.empty(0, "S16"), *(part.digests for part in parts)]).tolist() == (
        digests_of([row.image_id for row in records]).tolist()
    )


def test_digests_with_one_first_half_are_told_apart() -> None:
    digests = np.array([b"a" * 8 + bytes([second]) * 8 for second in range(1, 7)], "S16")
    seen = IdSet()
    for digest in digests[[4, 0, 2]]:
        seen.add(np.array([digest]))
    assert seen.holds(digests).tolist() == [True, False, True, False, True, False]


def test_an_id_that_a_later_table_repeats_is_the_same_id_whether_it_comes_at_once_or_later(
    tmp_path: Path,
) -> None:
    first = pa.table({"name": ["x", "y"], "image": [encode_image(0), encode_image(1)]})
    second = pa.table({"name": ["y", "z"], "image": [encode_image(2), encode_image(3)]})
    for folder in ("once", "later"):
        (tmp_path / folder).mkdir()
        pq.write_table(first, tmp_path / folder / "a.parquet")
    pq.write_table(second, tmp_path / "once/b.parquet")
    once = mean_job(str(tmp_path / "out-once"), ParquetSource(str(tmp_path / "once"), None, "name"))
    run_plain(once)
    for _ in range(2):
        later = mean_job(str(tmp_path / "out-later"), ParquetSource(str(tmp_path / "later"), None, "name"))
        _, _, summary = run_plain(later)
        pq.write_table(second, tmp_path / "later/b.parquet")
    found = [sorted(row["image_id"] for row in rows_of(job.output, "means")) for job in (once, later)]
    assert found[0] == found[1]
    assert len(set(found[0])) == 4
    assert summary["labelled"] == 4


def test_a_table_that_was_broken_is_listed_anew_when_failures_are_tried_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": [encode_image(0), encode_image(1)]}), tmp_path / "in/a.parquet")
    pq.write_table(pa.table({"image": [encode_image(2)]}), tmp_path / "in/b.parquet")
    whole = (tmp_path / "in/b.parquet").read_bytes()
    (tmp_path / "in/b.parquet").write_bytes(whole[: len(whole) // 2])

    def run(retry: bool) -> dict[str, Any]:
        source = ParquetSource(str(tmp_path / "in"))
        job = replace(mean_job(str(tmp_path / "out"), source), shard_size=2)
        return run_plain(job, retry_failed=retry)[2]

    assert [run(False)[name] for name in ("images", "labelled", "failed")] == [3, 2, 1]
    assert [run(True)[name] for name in ("images", "labelled", "failed")] == [3, 2, 1]
    (tmp_path / "in/b.parquet").write_bytes(whole)
    assert [run(False)[name] for name in ("images", "labelled", "failed")] == [3, 2, 1]
    assert [run(True)[name] for name in ("images", "labelled", "failed")] == [3, 3, 0]
    rows = rows_of(Folder(str(tmp_path / "out")), "means")
    assert sorted(row["image_id"] for row in rows) == ["a.parquet#0", "a.parquet#1", "b.parquet#0"]


def test_a_row_group_is_one_unit_whatever_parts_it_lies_in(tmp_path: Path) -> None:
    table = pa.table({"image": [encode_image(0)] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=60)
    source = ParquetSource(str(tmp_path / "a.parquet"))
    job = mean_job(str(tmp_path / "out"), source)
    manifest = prepare_manifest(job.output, source, 7)
    units = plan_work(job.output, source, manifest, MEANS, actors=4, batch=4).units
    groups: dict[int, set[int]] = {}
    for number, unit in enumerate(units):
        assert not isinstance(unit, ShardTask)
        for piece in unit:
            rows = piece.unfinished(read_part(job.output, piece.part))
            for row in rows:
                groups.setdefault(int(str(row["row_group"])), set()).add(number)
    assert {group: len(numbers) for group, numbers in groups.items()} == {0: 1, 1: 1}
    assert (
        sum(piece.stop - piece.start for unit in units if not isinstance(unit, ShardTask) for piece in unit)
        == 100
    )


def test_a_finished_start_leaves_nothing_to_plan(tmp_path: Path) -> None:
    write_shard(tmp_path / "s/a.tar", images(5))
    job = mean_job(str(tmp_path / "out"), WebDatasetSource(str(tmp_path / "s")))
    manifest, _, _ = run_plain(job)
    assert plan_job(job, manifest).is_empty


def test_an_output_that_listed_its_shards_before_the_work_is_refused_in_one_line(tmp_path: Path) -> None:
    write_shard(tmp_path / "s/a.tar", images(2))
    output = Folder(str(tmp_path / "out"))
    output.write(COMPLETE, b'{"images": 2, "counts": [2], "containers": ["a.tar"], "ignored": 0}')
    with pytest.raises(OutputMismatchError, match="begun by an older version") as refused:
        prepare_manifest(output, WebDatasetSource(str(tmp_path / "s")), 4)
    assert "\n" not in str(refused.value)


def test_an_older_manifest_of_plain_files_is_continued(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in images(3).items():
        (tmp_path / "in" / name).write_bytes(data)
    output = Folder(str(tmp_path / "out"))
    prepare_manifest(output, FolderSource(str(tmp_path / "in")), 2)
    output.write(COMPLETE, b'{"images": 3, "counts": [2, 1], "containers": [], "ignored": 0}')
    (tmp_path / "in/new.jpg").write_bytes(encode_image(9))
    manifest = prepare_manifest(output, FolderSource(str(tmp_path / "in")), 2)
    assert manifest.parts == {"part-00000": 2, "part-00001": 1, "part-00002": 1}


@pytest.mark.timeout(30)
def test_a_fifo_in_the_place_of_an_image_or_a_shard_is_a_failure_and_nobody_waits_for_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    for name, data in images(3).items():
        (tmp_path / "in" / name).write_bytes(data)
    job = mean_job(str(tmp_path / "out"), FolderSource(str(tmp_path / "in")))
    prepare_manifest(job.output, job.source, job.shard_size)
    (tmp_path / "in/001.jpg").unlink()
    os.mkfifo(tmp_path / "in/001.jpg")
    summary = run_plain(job)[2]
    assert (summary["labelled"], summary["failed"]) == (2, 1)
    assert "FIFO" in rows_of(job.output, "_failures")[0]["reason"]

    write_shard(tmp_path / "s/a.tar", images(2))
    shards = mean_job(str(tmp_path / "out2"), WebDatasetSource(str(tmp_path / "s")))
    (tmp_path / "s/a.tar").unlink()
    os.mkfifo(tmp_path / "s/a.tar")
    summary = run_plain(shards)[2]
    assert (summary["labelled"], summary["failed"]) == (0, 1)
    assert "FIFO" in rows_of(shards.output, "_failures")[0]["reason"]


def test_units_of_files_are_filled_across_parts(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    source = FolderSource(str(image_folder(23)))
    job = replace(mean_job(str(tmp_path / "out"), source), shard_size=5)
    manifest = prepare_manifest(job.output, source, 5)
    units = plan_work(job.output, source, manifest, MEANS, actors=1, batch=8, most=64).units
    sizes = [sum(piece.stop - piece.start for piece in unit) for unit in units if isinstance(unit, list)]
    assert sizes == [8, 8, 7]
    listed = [
        row["image_id"]
        for unit in units
        if isinstance(unit, list)
        for piece in unit
        for row in piece.unfinished(read_part(job.output, piece.part))
    ]
    assert listed == [record.image_id for record in source.records()]
