"""What the job itself costs an image: the whole run with stages that do nothing, in processor time by kind of process.

The stages take and give what real ones would, bytes of the same number, and note images in the ledger; only the work is
left out. Start-up is taken out by a shorter run: costs are differences over differences.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.benchmark.host_costs import HostCosts, sample_result, sample_vocabulary
from pipelines.benchmark.noop_stage import NoopStage
from pipelines.label.masks import encode_mask
from pipelines.label.table import label_column, label_table
from pipelines.run.capacity import Pool
from pipelines.run.cluster import connected
from pipelines.run.events import shown_by
from pipelines.run.manifest import prepare_manifest
from pipelines.run.options import SourceOptions
from pipelines.run.progress import ProgressReport
from pipelines.run.runner import ActorStage, Job, run_job
from pipelines.storage import Folder

SHARD_SIZE = 256
ROW_GROUP = 1024
_WARM_UP = 1024
_LOOK_S = 1.0
_IDLE_S = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class NoopJob:
    """A run whose stages do nothing.

    Attributes:
        records: Images of the longer run.
        image_bytes: Bytes of an image file.
        proposal_bytes: Bytes that stage 1 hands to stage 2; 0 leaves out stage 2.
        batch: Images of a call.
        actors: Workers of each stage.
        unit_rows: Images of a read task.
        fragment_rows: Images that are stored together.
        source: Rows of a Parquet table, or files of a folder.
        few: The shorter run has a part of the images, one in so many.
        pause_s: How much longer the shorter run takes when it is done again with a last stage that waits; 0 leaves it out.
    """

    records: int = 100_000
    image_bytes: int = 100_000
    proposal_bytes: int = 150_000
    batch: int = 64
    actors: int = 2
    unit_rows: int = 1024
    fragment_rows: int = 256
    source: Literal["table", "folder"] = "table"
    few: int = 4
    pause_s: float = 20.0


def measure_job(job: NoopJob) -> dict[str, float]:
    """Run the job twice and return core-milliseconds an image, by kind of process, and images a second.

    Returns:
        ``driver``, ``actors`` (both stages), ``tasks`` (reading and storing), ``ledger``, ``raylet``, ``gcs``, ``other``;
        ``all`` is their sum, ``idle`` what Ray takes in the same time without work, which is part of it;
        ``driver_by_second``, which the driver takes while images last however many they are, and ``driver_by_image``,
        the rest, of which a faster cluster asks more; and ``images_a_second``.
    """
    few, many = max(_WARM_UP, job.records // job.few), job.records
    with tempfile.TemporaryDirectory() as root, connected(None):
        place = Path(root)
        _run(job, noop_corpus(job, place, _WARM_UP), place / "warm")
        idle = _idle_cores()
        source = noop_corpus(job, place, few)
        first = _run(job, source, place / "few")
        slow = _run(job, source, place / "slow", job.pause_s) if job.pause_s else None
        second = _run(job, noop_corpus(job, place, many), place / "many")
    images = many - few
    spent = {
        kind: 1000 * (second.spent.get(kind, 0.0) - first.spent.get(kind, 0.0)) / images
        for kind in sorted(second.spent)
    }
    wall = second.seconds - first.seconds
    by_second = 1000 * _waiting_cores(first, slow) * wall / images if slow else 0.0
    split = {"driver_by_second": by_second, "driver_by_image": spent["driver"] - by_second} if slow else {}
    return {
        **spent,
        "all": sum(spent.values()),
        "idle": 1000 * idle * wall / images,
        **split,
        "images_a_second": images / wall,
    }


@dataclass(frozen=True)
class _Spent:
    seconds: float
    spent: Mapping[str, float]


def _waiting_cores(fast: _Spent, slow: _Spent) -> float:
    """Return how many cores the driver takes while its stages wait: from two runs of the same images."""
    return (slow.spent["driver"] - fast.spent["driver"]) / (slow.seconds - fast.seconds)


def _run(job: NoopJob, source: SourceOptions, output: Path, pause_s: float = 0.0) -> _Spent:
    opened = source.open()
    manifest = prepare_manifest(Folder(str(output)), opened, SHARD_SIZE)
    work = Job(
        Folder(str(output)),
        opened,
        noop_stages(job, wait_last=pause_s * job.actors / manifest.images),
        label_table(sample_vocabulary(HostCosts.classes)),
        shard_size=SHARD_SIZE,
        fragment_rows=job.fragment_rows,
        unit_rows=job.unit_rows,
    )
    start = time.perf_counter()
    with Spending() as spending, shown_by(), ProgressReport(manifest.images) as progress:
        run_job(work, manifest, progress)
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return _Spent(seconds, spending.by_kind)


def noop_stages(
    job: NoopJob,
    wait_first: float = 0.0,
    wait_last: float = 0.0,
    num_cpus: float = 0.25,
) -> list[ActorStage]:
    """Return the stages of a job.

    Args:
        wait_first: Seconds that an image waits in the first.
        wait_last: Seconds that it waits in the last.
        num_cpus: CPUs that a worker reserves. Where a read task reserves as many, Ray Data lets the workers of the first
            stage read, and nothing lies in the store between.
    """
    last = {"output": "result", "value": _labels(), "wait_s": wait_last}
    if not job.proposal_bytes:
        last |= {"payload": "image", "wait_s": wait_first + wait_last}
        return [ActorStage("segment", NoopStage, last, Pool("segment", job.actors, num_cpus), job.batch)]
    proposal = pa.array([np.random.default_rng(0).bytes(job.proposal_bytes)], pa.binary())
    first = {"payload": "image", "output": "proposal", "value": proposal, "wait_s": wait_first}
    last |= {"payload": "proposal"}
    return [
        ActorStage("propose", NoopStage, first, Pool("propose", job.actors, num_cpus), job.batch),
        ActorStage("finish", NoopStage, last, Pool("finish", job.actors, num_cpus), job.batch),
    ]


def noop_corpus(job: NoopJob, root: Path, count: int) -> SourceOptions:
    """Make so many images, all of the same bytes: they are stored once and read again and again."""
    place, data = root / f"images-{count}", np.random.default_rng(1).bytes(job.image_bytes)
    place.mkdir()
    if job.source == "folder":
        (place / "000000000.jpg").write_bytes(data)
        for number in range(1, count):
            os.link(place / "000000000.jpg", place / f"{number:09d}.jpg")
        return SourceOptions(images=str(place))
    images = pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([data]))
    pq.write_table(pa.table({"image": images}), place / "images.parquet", row_group_size=ROW_GROUP)
    return SourceOptions(parquet=str(place))


class Spending:
    """Processor seconds of this process and all that descend from it, by kind, while the block runs.

    It looks once a second, as workers end before the run does and change what they do; what one spends in its last second
    is lost. Its own time is taken off.

    Attributes:
        by_kind: Seconds by kind of process, complete when the block has ended.
    """

    def __init__(self) -> None:
        self.by_kind: defaultdict[str, float] = defaultdict(float)
        self._seen: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Spending":
        self._seen = {number: seconds for number, _, seconds in processor_seconds()}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self._look()
        self._look()
        self.by_kind["driver"] -= time.thread_time()

    def _look(self) -> None:
        for number, line, seconds in processor_seconds():
            self.by_kind[_kind(line)] += seconds - self._seen.get(number, 0.0)
            self._seen[number] = seconds


def processor_seconds() -> Iterator[tuple[int, str, float]]:
    """Yield number, command line and processor time of this process and of all that descend from it."""
    parents: dict[int, int] = {}
    found: dict[int, tuple[str, float]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            _, _, fields = (entry / "stat").read_text().rpartition(") ")
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        numbers = fields.split()
        parents[int(entry.name)] = int(numbers[1])
        found[int(entry.name)] = line, (int(numbers[11]) + int(numbers[12])) / _TICKS
    for process, (line, seconds) in found.items():
        ancestor = process
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid():
            yield process, "driver" if process == ancestor else line, seconds


_SIGNS = {"driver": "driver", "raylet/raylet": "raylet", "gcs_server": "gcs"}


def _kind(line: str) -> str:
    """Say what a process does, from its command line, in which Ray's workers write what they do."""
    if line.startswith("ray::"):
        return "ledger" if "AttemptRecord" in line else "actors" if "MapWorker" in line else "tasks"
    return next((kind for sign, kind in _SIGNS.items() if sign in line), "other")


def _idle_cores() -> float:
    """Return how many cores Ray takes while nothing runs."""
    start = time.perf_counter()
    with Spending() as spending:
        time.sleep(_IDLE_S)
    return sum(spending.by_kind.values()) / (time.perf_counter() - start)


def _labels() -> pa.Array:
    """Return a row as an image of 500 x 375 pixels gives it with 150 classes."""
    result = sample_result((375, 500), HostCosts(), np.random.default_rng(0))
    return label_column([result], [encode_mask(result.label_map)])


def as_table(costs: Mapping[str, float]) -> str:
    """Return the costs as lines for people."""
    lines = ["", "| processes | core-ms an image |", "|---|---|"]
    lines += [f"| {kind} | {cost:.4f} |" for kind, cost in costs.items() if kind != "images_a_second"]
    return "\n".join([*lines, f"{costs['images_a_second']:,.0f} images a second"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    import argparse

    parser = argparse.ArgumentParser("python -m pipelines.benchmark.job_costs", description=__doc__)
    for name, default in vars(NoopJob()).items():
        kind = type(default)
        choices = ("table", "folder") if name == "source" else None
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, choices=choices)
    parser.add_argument("--json", action="store_true", help="Print the costs for programs.")
    given = vars(parser.parse_args(arguments))
    as_json = given.pop("json")
    costs = measure_job(NoopJob(**given))
    print(json.dumps(costs) if as_json else as_table(costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
