"""Whole runs (Ray apart) over damaged containers, and over outputs of which one file is damaged."""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ovss_core.errors import OvssError
from ovss_core.images.decode import decode_image
from pipelines.run.runner import Job
from pipelines.run.verify import verify_output
from pipelines.sources import ParquetSource, Source, WebDatasetSource, open_images
from pipelines.storage import Folder
from tests.conftest import encode_image
from tests.fuzz import seeds
from tests.fuzz.campaign import Target
from tests.fuzz.checksums import mend_tar
from tests.pipelines.mean_color import MeanColor, mean_job
from tests.pipelines.plain_execution import rows_of, run_plain
from tests.pipelines.test_crash_points import Killed, assert_whole, make_input
from tests.pipelines.test_damaged_state import KilledLate, state_files
from tests.pipelines.test_parquet_source import delta_add, write_delta

MAX_PIXELS = 1 << 18
MAX_BYTES = 1 << 20
_LONGEST_REASON = 500
_MOMENT = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def require(holds: bool, what: str) -> None:
    """Raise an AssertionError that says what does not hold."""
    if not holds:
        raise AssertionError(what)


def run_targets(folder: Path) -> list[Target]:
    """Build the targets that are whole runs.

    Args:
        folder: Where inputs and outputs are put.
    """
    parquet = seeds.parquet_files()
    targets = [
        Target("webdataset", seeds.tar_files(), partial(_check_shard, folder), mend_tar),
        Target("parquet", parquet, partial(_check_table, folder)),
        Target("lists", seeds.list_files(), partial(_check_list, folder)),
        _state_target(folder / "outputs"),
    ]
    if find_spec("deltalake"):
        targets.append(_delta_target(folder / "delta", parquet["bytes"]))
    return targets


class DecodeImages(MeanColor):
    """Decodes as the labelling stages do, and stores the mean of what it got."""

    def work(self, items: Sequence[tuple[str, bytes]]) -> list[dict[str, object]]:
        return [{"mean": float(decode_image(data, MAX_PIXELS).mean()), "png": data[:8]} for _, data in items]


def _job(source: Source, output: Path) -> Job:
    job = mean_job(str(output), source)
    stages = [replace(stage, worker=DecodeImages) for stage in job.stages]
    return replace(job, stages=stages, shard_size=6, max_bytes=MAX_BYTES)


def _check_run(job: Job) -> None:
    """Run a job: each image that is listed has one row, and each failure one line that says why."""
    _start(job)
    require(not (problems := verify_output(job.output, content=True).problems), f"{problems[:3]}")
    for row in rows_of(job.output, "_failures"):
        reason = row["reason"]
        short = 0 < len(reason) <= _LONGEST_REASON and reason.isprintable()
        require(short, f"the reason is no short line: {reason[:300]!r}")


def _start(job: Job) -> None:
    try:
        run_plain(job)
    except OvssError as error:
        if type(error) is OvssError:  # no refusal, but a run that broke off or lost count
            raise AssertionError(f"the run broke off: {error}") from error
        raise


def _check_shard(folder: Path, name: str, data: bytes) -> None:
    with TemporaryDirectory(dir=folder) as place:
        path = Path(place, "shard.tar")
        path.write_bytes(data)
        _check_run(_job(WebDatasetSource(str(path)), Path(place, "out")))


def _check_table(folder: Path, name: str, data: bytes) -> None:
    with TemporaryDirectory(dir=folder) as place:
        path = Path(place, "table.parquet")
        path.write_bytes(data)
        Path(place, "1.jpg").write_bytes(encode_image(1, 12, 12))
        _check_run(_job(ParquetSource(str(path)), Path(place, "out")))


def _check_list(folder: Path, name: str, data: bytes) -> None:
    with TemporaryDirectory(dir=folder) as place:
        path = Path(place, name)
        path.write_bytes(data)
        for number in range(4):
            Path(place, f"{number}.jpg").write_bytes(encode_image(number, 12, 12))
        _check_run(_job(open_images(str(path)), Path(place, "out")))


def _delta_target(folder: Path, table: bytes) -> Target:
    """Build the target of Delta tables: one file of the log is damaged, the table's own files are sound."""

    def build(place: Path) -> Path:
        place.mkdir()
        for name in ("old.parquet", "new.parquet"):
            (place / name).write_bytes(table)
        actions: list[dict[str, Any]] = [delta_add(place, name) for name in ("old.parquet", "new.parquet")]
        actions[1]["add"]["path"] = "new.parquet"
        write_delta(place, [*actions, {"remove": {"path": "old.parquet", "dataChange": True}}])
        return place / "_delta_log"

    folder.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=folder) as place:
        logs = {path.name: path.read_bytes() for path in build(Path(place, "t")).iterdir()}

    def check(name: str, data: bytes) -> None:
        with TemporaryDirectory(dir=folder) as place:
            (build(Path(place, "t")) / name).write_bytes(data)
            _check_run(_job(ParquetSource(str(Path(place, "t"))), Path(place, "out")))

    return Target("delta", logs, check)


def _state_target(folder: Path) -> Target:
    """Build the target of the files that a run keeps about itself, finished and interrupted, of both layouts."""
    jobs: dict[str, Callable[[Path, Path], Job]] = {}
    files: dict[str, bytes] = {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for kind in ("folder", "shards"):
        jobs[kind] = make_input(kind, folder / kind)
        run_plain(jobs[kind](folder / kind, folder / f"{kind}-finished"))
        with pytest.raises(Killed):
            run_plain(jobs[kind](folder / kind, folder / f"{kind}-interrupted"), execution=KilledLate)
        for state in ("finished", "interrupted"):
            output = folder / f"{kind}-{state}"
            for name in state_files(output):
                data = (output / name).read_bytes()
                files[f"{kind}-{state}/{name}"] = _MOMENT.sub(b"2000-01-01T00:00:00", data)

    def check(name: str, data: bytes) -> None:
        state, _, file = name.partition("/")
        with TemporaryDirectory(dir=folder) as place:
            output = Path(place, "out")
            shutil.copytree(folder / state, output)
            (output / file).write_bytes(data)
            kind = state.partition("-")[0]
            _check_restart(jobs[kind](folder / kind, output))

    return Target("state", files, check)


def _check_restart(job: Job) -> None:
    """Start a run on a damaged output: it refuses, or every image has its row afterwards.

    Pages of finished files are read on demand only, so that a damaged one may be left: then `verify` must say so.
    """
    _start(job)
    require(not (problems := verify_output(job.output).problems), f"not made good: {problems[:3]}")
    if not verify_output(Folder(job.output.uri), content=True).problems:
        assert_whole(job)
