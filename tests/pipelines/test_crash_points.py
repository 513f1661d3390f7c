"""A start that dies at any operation on its output, and the start that comes after it."""

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ovss_core.errors import OvssError, StorageError
from pipelines.run.record import check_identity, remove_run
from pipelines.run.runner import Job
from pipelines.run.verify import verify_output
from pipelines.sources import FolderSource, WebDatasetSource
from tests.pipelines.faulty_storage import use_faulty_storage
from tests.pipelines.mean_color import mean_job
from tests.pipelines.plain_execution import rows_of, run_plain
from tests.pipelines.test_shards import images, write_shard

EVERY = pytest.param(1, marks=pytest.mark.slow)
"""All operations; the default suite kills at every fifth one, and at all of a clearing."""


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the syncs, which only a power cut would tell."""
    monkeypatch.setattr("pipelines.transport.local._sync", lambda descriptor: None)


class Killed(BaseException):
    """Stands for the end of the process: nothing of it runs afterwards."""


class Clock:
    """Kills at the n-th operation that changes something; counts them when n is None."""

    def __init__(self, deadly: int | None = None) -> None:
        self.deadly, self.count, self.dead = deadly, 0, False

    def __call__(self, operation: str, path: str) -> None:
        if self.dead:
            raise Killed
        if operation in ("write", "move", "delete"):
            self.count += 1
            if self.count == self.deadly:
                self.dead = True
                raise Killed


def folder_job(folder: Path, output: Path) -> Job:
    return replace(mean_job(str(output), FolderSource(str(folder))), shard_size=3, fragment_rows=2)


def shards_job(folder: Path, output: Path) -> Job:
    job = mean_job(str(output), WebDatasetSource(str(folder)))
    return replace(job, shard_size=3, fragment_rows=2, file_bytes=1)  # each part gets a file of its own


def make_input(kind: str, folder: Path) -> Callable[[Path, Path], Job]:
    folder.mkdir()
    if kind == "folder":
        for name, data in images(5).items():
            (folder / name).write_bytes(data)
        (folder / "bad.jpg").write_bytes(b"no image")
        return folder_job
    write_shard(folder / "a.tar", {**images(4), "bad.jpg": b"no image"})
    write_shard(folder / "b.tar.gz", images(1, 4), "w:gz")
    return shards_job


def assert_whole(job: Job) -> None:
    summary = json.loads(job.output.read("summary.json"))
    assert (summary["images"], summary["labelled"], summary["failed"]) == (6, 5, 1)
    rows = [row["image_id"] for table in ("means", "_failures") for row in rows_of(job.output, table)]
    assert len(rows) == len(set(rows)) == 6
    assert verify_output(job.output, content=True).problems == []
    assert not job.output.exists("_fragments")


def assert_no_row_twice(output: Path) -> None:
    """Read as somebody who knows nothing of runs: whatever Parquet files there are below the output."""
    files = sorted(output.rglob("*.parquet"))
    ids = [row["image_id"] for file in files for row in pq.read_table(file).to_pylist()]
    assert len(ids) == len(set(ids))


def crash_everywhere(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    begin: Callable[[Job], object],
    before: Callable[[Job], object],
    step: int,
) -> int:
    """Kill `begin` at every so many of its operations, each time in an output of its own; return how many there are."""
    build, output = make_input(kind, tmp_path / "in"), tmp_path / "out"
    before(build(tmp_path / "in", tmp_path / "before"))
    deadly = 1 - step
    while True:
        deadly += step
        shutil.rmtree(output, ignore_errors=True)
        if (tmp_path / "before").exists():
            shutil.copytree(tmp_path / "before", output)
        job = build(tmp_path / "in", output)
        with monkeypatch.context() as patch:
            use_faulty_storage(patch, output, clock := Clock(deadly))
            with suppress(Killed):
                begin(job)
            if not clock.dead:
                return deadly - 1
        assert_no_row_twice(output)
        run_plain(job)
        assert_whole(job)


@pytest.mark.parametrize("step", [5, EVERY])
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_first_start_that_dies_at_any_operation_is_made_good_by_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, step: int
) -> None:
    assert crash_everywhere(monkeypatch, tmp_path, kind, run_plain, lambda job: None, step) > 20


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_clearing_that_dies_at_any_operation_is_ended_by_a_start_without_overwrite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    def clear(job: Job) -> None:
        remove_run(job.output, job.table.name)

    assert crash_everywhere(monkeypatch, tmp_path, kind, clear, run_plain, 1) > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_an_overwrite_that_dies_at_any_operation_is_made_good_by_a_start_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    def overwrite(job: Job) -> None:
        run_plain(job, overwrite=True)

    assert crash_everywhere(monkeypatch, tmp_path, kind, overwrite, run_plain, 1) > 30


@pytest.mark.parametrize("step", [5, EVERY])
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_retry_that_dies_at_any_operation_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, step: int
) -> None:
    def retry(job: Job) -> None:
        run_plain(job, retry_failed=True)

    assert crash_everywhere(monkeypatch, tmp_path, kind, retry, run_plain, step) > 5


def test_clearing_leaves_what_the_run_did_not_write_and_another_run_may_follow(tmp_path: Path) -> None:
    build = make_input("folder", tmp_path / "in")
    job = build(tmp_path / "in", tmp_path / "out")
    run_plain(job)
    (tmp_path / "out/mine.txt").write_text("-")
    remove_run(job.output, "means")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_probe_of_a_start_that_was_killed_does_not_block_the_next(tmp_path: Path) -> None:
    build = make_input("folder", tmp_path / "in")
    job = build(tmp_path / "in", tmp_path / "out")
    job.output.write("_ovss_probe_0123", b"")
    check_identity(job.output, {"job": "means"})
    run_plain(job)
    assert_whole(job)
    assert not job.output.exists("_ovss_probe_0123")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("after", [0, 4, 8])
def test_a_disk_that_is_full_or_read_only_stops_the_run_in_one_line_and_it_goes_on_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int, code: int
) -> None:
    build = make_input("folder", tmp_path / "in")
    job = build(tmp_path / "in", tmp_path / "out")
    seen: Counter[str] = Counter()

    def full(operation: str, path: str) -> None:
        if operation in ("write", "move", "create_dir"):
            seen["all"] += 1
            if seen["all"] > after:
                raise OSError(code, "this disk takes no more", path)

    with monkeypatch.context() as patch:
        use_faulty_storage(patch, tmp_path / "out", full)
        with pytest.raises(StorageError) as stopped:
            run_plain(job)
    assert "\n" not in str(stopped.value)
    assert f"{tmp_path}/out" in str(stopped.value)
    run_plain(job)
    assert_whole(job)
    assert list((tmp_path / "out").rglob("*.part")) == []


def test_a_store_that_is_away_for_a_while_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    build = make_input("folder", tmp_path / "in")
    job = build(tmp_path / "in", tmp_path / "out")
    faults: Counter[str] = Counter()

    def away(operation: str, path: str) -> None:
        if operation in ("read", "write", "list") and faults[operation] < 3:
            faults[operation] += 1
            raise OSError("AWS Error INTERNAL_FAILURE (HTTP status 500) during PutObject operation: again")

    use_faulty_storage(monkeypatch, tmp_path / "out", away)
    run_plain(job)
    assert_whole(job)
    assert faults["write"] == faults["read"] == faults["list"] == 3


def test_halves_of_files_from_before_this_start_go(tmp_path: Path) -> None:
    build = make_input("folder", tmp_path / "in")
    job = build(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/means").mkdir(parents=True)
    half = tmp_path / "out/means/.0123456789abcdef.part"
    half.write_bytes(b"half")
    os.utime(half, (1, 1))
    run_plain(job, overwrite=True)
    assert not half.exists()


def test_a_round_that_brings_nothing_new_names_images_and_who_had_them(tmp_path: Path) -> None:
    from tests.pipelines.plain_execution import PlainExecution

    class Loses(PlainExecution):
        def tables(self, units: object) -> object:  # type: ignore[override]
            for table in super().tables(units):  # type: ignore[arg-type]
                kept = [row for row in table.to_pylist() if row["image_id"] != "003.jpg"]
                self.record.begin("mean", ["003.jpg"])
                yield table.from_pylist(kept, schema=table.schema)

    build = make_input("folder", tmp_path / "in")
    job = build(tmp_path / "in", tmp_path / "out")
    with pytest.raises(OvssError, match=r"1 images have no row, such as '003\.jpg' \(mean began it"):
        run_plain(job, execution=Loses)
    run_plain(job)
    assert_whole(job)
