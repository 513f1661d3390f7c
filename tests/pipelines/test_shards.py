import io
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from pipelines.run.ledger import AttemptRecord
from pipelines.run.manifest import prepare_manifest
from pipelines.run.manifest_files import read_listing, read_part
from pipelines.run.progress import ProgressReport
from pipelines.run.runner import Job
from pipelines.run.verify import verify_output
from pipelines.sources import WebDatasetSource
from pipelines.sources.tar_stream import stream_tar
from pipelines.storage import Folder, open_storage
from tests.conftest import encode_image
from tests.pipelines.faulty_storage import CountedFile
from tests.pipelines.mean_color import mean_job, mean_of
from tests.pipelines.plain_execution import PlainExecution, rows_of, run_plain


def write_shard(path: Path, images: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in images.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def images(count: int, first: int = 0) -> dict[str, bytes]:
    return {f"{n:03d}.jpg": encode_image(n) for n in range(first, first + count)}


def shard_job(folder: Path, output: Path, **changes: Any) -> Job:
    return replace(mean_job(str(output), WebDatasetSource(str(folder))), shard_size=8, **changes)


def means(output: Folder) -> dict[str, float]:
    rows = rows_of(output, "means")
    found = {row["image_id"]: row["mean"] for row in rows}
    assert len(found) == len(rows)
    return found


def test_shards_are_listed_while_they_are_read_and_every_image_has_its_row(tmp_path: Path) -> None:
    write_shard(tmp_path / "s/a.tar", {**images(20), "notes.txt": b"-"})
    write_shard(tmp_path / "s/b.tar.gz", images(8, 20), "w:gz")
    write_shard(tmp_path / "s/c.tar", {})
    job = shard_job(tmp_path / "s", tmp_path / "out")

    manifest, progress, summary = run_plain(job)

    assert manifest.parts == {
        "part-00000-00000": 8,
        "part-00000-00001": 8,
        "part-00000-00002": 4,
        "part-00001-00000": 8,
    }
    assert (manifest.images, manifest.ignored, progress.done, progress.total) == (28, 1, 28, 28)
    assert (summary["images"], summary["labelled"], summary["failed"]) == (28, 28, 0)
    expected = {f"a.tar/{n:03d}": mean_of(encode_image(n)) for n in range(20)}
    expected |= {f"b.tar.gz/{n:03d}": mean_of(encode_image(n)) for n in range(20, 28)}
    assert means(job.output) == expected
    assert verify_output(job.output, content=True).problems == []
    assert read_part(job.output, "part-00001-00000")["offset"].null_count == 8
    again = PlainExecution(job)
    assert run_plain(job, execution=lambda _: again)[1].fresh == 0  # type: ignore[arg-type]
    assert again.read == []


def test_listing_reads_no_byte_of_a_shard_and_a_run_reads_each_byte_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "s/a.tar", images(30))
    write_shard(tmp_path / "s/b.tar", images(30, 30))
    size = sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    read = Counter[str]()

    class Counted:
        """The local disk, with every byte counted that is read of a file."""

        local = pafs.LocalFileSystem()

        def open_input_file(self, path: str) -> Any:
            return CountedFile(self.local.open_input_file(path), lambda size: read.update(bytes=size))

        def get_file_info(self, path: Any) -> Any:
            return self.local.get_file_info(path)

    def counted(uri: str) -> tuple[Any, str]:
        return Counted(), open_storage(uri)[1]

    for module in (
        "pipelines.run.shards",
        "pipelines.transport.patient_stream",
        "pipelines.sources.listing",
    ):
        monkeypatch.setattr(f"{module}.open_storage", counted)
    job = shard_job(tmp_path / "s", tmp_path / "out")
    prepare_manifest(job.output, job.source, job.shard_size)
    assert read["bytes"] == 0
    _, _, summary = run_plain(job)
    assert summary["labelled"] == 60
    assert 0.9 * size < read["bytes"] <= size


class Killed(BaseException):
    """Stands for the end of the driver."""


class KilledAfter(PlainExecution):
    """Dies when so many fragments are written."""

    after = 0

    def written(self, units: Sequence[Any]) -> Any:
        for number, row in enumerate(super().written(units)):
            if number == self.after:
                raise Killed
            yield row


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("after", range(7))
def test_a_run_that_was_killed_between_any_two_fragments_goes_on_without_repeating_an_image(
    tmp_path: Path, after: int, compressed: bool
) -> None:
    ending, mode = ("tar.gz", "w:gz") if compressed else ("tar", "w")
    write_shard(tmp_path / f"s/a.{ending}", images(20), mode)
    write_shard(tmp_path / f"s/b.{ending}", images(5, 20), mode)
    job = shard_job(tmp_path / "s", tmp_path / "out")
    with pytest.raises(Killed):
        run_plain(job, execution=type("Now", (KilledAfter,), {"after": after}))
    stored = sum(read["labelled"] for read in _markers(job.output)) + sum(
        len(_fragment_ids(job.output, part)) for part in job.output.folders("_fragments")
    )

    _, progress, summary = run_plain(job)

    assert progress.fresh == 25 - stored
    assert (summary["images"], summary["labelled"]) == (25, 25)
    assert len(means(job.output)) == 25
    assert verify_output(job.output, content=True).problems == []


def _markers(output: Folder) -> list[dict[str, Any]]:
    import json

    return [json.loads(output.read(f"_done/{name}")) for name in output.names("_done")]


def _fragment_ids(output: Folder, part: str) -> set[str]:
    from pipelines.run.fragments import finished_ids

    return finished_ids(output, part) if f"{part}.json" not in output.names("_done") else set()


def test_a_shard_that_ends_early_is_one_failure_and_is_read_anew_once_it_is_whole(tmp_path: Path) -> None:
    write_shard(tmp_path / "s/a.tar", images(20))
    whole = (tmp_path / "s/a.tar").read_bytes()
    (tmp_path / "s/a.tar").write_bytes(whole[: len(whole) // 2])
    job = shard_job(tmp_path / "s", tmp_path / "out")
    _, _, summary = run_plain(job)
    before = means(job.output)
    assert summary["failed"] == 1
    assert 3 < len(before) == summary["labelled"] < 20
    [failure] = rows_of(job.output, "_failures")
    assert (failure["image_id"], failure["stage"]) == ("a.tar", "list")

    (tmp_path / "s/a.tar").write_bytes(whole)
    assert run_plain(job)[1].fresh == 0
    _, progress, summary = run_plain(job, retry_failed=True)

    assert (summary["images"], summary["labelled"], summary["failed"]) == (20, 20, 0)
    assert progress.fresh == 20 - len(before)
    assert means(job.output).keys() > before.keys()
    assert read_listing(job.output, 0).problem is None
    assert verify_output(job.output, content=True).problems == []


def test_a_missing_shard_of_a_range_and_what_is_no_tar_are_one_failure_each(tmp_path: Path) -> None:
    write_shard(tmp_path / "s/a-0.tar", images(3))
    (tmp_path / "s/a-2.tar").write_bytes(b"no tar at all" * 100)
    job = replace(
        mean_job(str(tmp_path / "out"), WebDatasetSource(f"{tmp_path}/s/a-{{0..2}}.tar")), shard_size=8
    )
    _, _, summary = run_plain(job)
    assert (summary["labelled"], summary["failed"]) == (3, 2)
    reasons = {row["image_id"]: row["reason"] for row in rows_of(job.output, "_failures")}
    assert reasons["a-1.tar"] == f"the shard is missing: there is no {tmp_path}/s/a-1.tar"
    assert reasons.keys() == {"a-1.tar", "a-2.tar"}


def test_new_shards_are_appended_and_known_ones_are_not_read_again(tmp_path: Path) -> None:
    write_shard(tmp_path / "s/b.tar", images(3))
    run_plain(shard_job(tmp_path / "s", tmp_path / "out"))
    write_shard(tmp_path / "s/a.tar", images(2, 3))
    job = shard_job(tmp_path / "s", tmp_path / "out")
    manifest, progress, _ = run_plain(job)
    assert manifest.containers == ("b.tar", "a.tar")
    assert (manifest.appended, manifest.gone) == (1, 0)
    assert progress.fresh == 2
    assert manifest.parts == {"part-00000-00000": 3, "part-00001-00000": 2}


def test_a_shard_that_was_replaced_between_two_starts_loses_no_finished_row_and_says_so(
    tmp_path: Path,
) -> None:
    write_shard(tmp_path / "s/a.tar", images(20))
    job = shard_job(tmp_path / "s", tmp_path / "out")
    with pytest.raises(Killed):
        run_plain(job, execution=type("Now", (KilledAfter,), {"after": 3}))
    assert job.output.names("_done") == ["part-00000-00000.json"]
    write_shard(tmp_path / "s/a.tar", images(12, 100))

    _, _, summary = run_plain(job)

    assert (summary["labelled"], summary["failed"]) == (8, 1)
    [failure] = rows_of(job.output, "_failures")
    assert "has changed since images of it were finished" in failure["reason"]
    _, _, summary = run_plain(job, retry_failed=True)
    assert (summary["images"], summary["labelled"], summary["failed"]) == (12, 12, 0)
    assert means(job.output).keys() == {f"a.tar/{n}" for n in range(100, 112)}
    assert verify_output(job.output, content=True).problems == []


class DiesAtMember(PlainExecution):
    """A worker that dies whenever it reads a certain member, and is started again with the same unit."""

    deadly = b""

    def tables(self, units: Sequence[Any]) -> Any:
        for unit in units:
            for _ in range(20):
                try:
                    tables = list(super().tables([unit]))
                    break
                except Killed:
                    continue
            else:
                raise AssertionError("the unit was never finished")
            yield from tables


def test_a_shard_that_kills_its_reader_keeps_the_images_before_and_is_one_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.run import shards

    write_shard(tmp_path / "s/a.tar", images(20))
    write_shard(tmp_path / "s/b.tar", images(4, 20))
    original, deaths = stream_tar, []

    def deadly(*arguments: Any) -> Any:
        for item in original(*arguments):
            if getattr(item, "key", "") == "010":
                deaths.append(1)
                raise Killed
            yield item

    monkeypatch.setattr(shards, "stream_tar", deadly)
    job = shard_job(tmp_path / "s", tmp_path / "out")
    _, _, summary = run_plain(job, execution=DiesAtMember)

    assert len(deaths) == 3  # once among others, twice alone
    assert (summary["labelled"], summary["failed"]) == (14, 1)
    [failure] = rows_of(job.output, "_failures")
    assert (failure["image_id"], failure["error_type"]) == ("a.tar", "WorkerCrash")
    monkeypatch.setattr(shards, "stream_tar", original)
    assert run_plain(job, retry_failed=True)[2]["labelled"] == 24


def test_the_ledger_forgets_what_was_read() -> None:
    from pipelines.run.shards import _noted

    record = AttemptRecord()
    assert list(_noted(iter(range(40)), "s", record)) == list(range(40))
    assert record._open == {}


def test_progress_moves_by_image_while_fragments_are_still_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.run.runner._POLL_S", 0.01)
    reached: list[int] = []

    class Waits(PlainExecution):
        def written(self, units: Sequence[Any]) -> Any:
            for row in super().written(units):
                deadline = time.monotonic() + 100
                while (not reached or reached[-1] < self.finished()) and time.monotonic() < deadline:
                    time.sleep(0.005)
                yield row

    class Heard(ProgressReport):
        def reach(self, images: int) -> None:
            reached.append(images)
            super().reach(images)

    monkeypatch.setattr("tests.pipelines.plain_execution.ProgressReport", Heard)
    write_shard(tmp_path / "s/a.tar", images(10))
    run_plain(shard_job(tmp_path / "s", tmp_path / "out"), execution=Waits)
    assert reached == sorted(reached)
    assert {4, 8, 10} <= set(reached)
