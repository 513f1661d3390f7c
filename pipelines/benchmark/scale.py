"""What one driver takes for a corpus of any size: listing, planning, its loop, and a start that resumes, with no image.

The source is synthetic: it names as many files as are asked for, and none of them exists. Every phase is a process of its
own, so that its peak of memory is its own, and nothing of Ray is in it: the stages do nothing, at once. What Ray adds by
the image and the fragment is in `pipelines.benchmark.job_costs`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.run.capacity import Pool
from pipelines.run.events import shown_by
from pipelines.run.execution import ActorStage, Job
from pipelines.run.fragments import write_fragment
from pipelines.run.manifest import prepare_manifest, read_manifest
from pipelines.run.manifest_files import read_part
from pipelines.run.progress import ProgressReport
from pipelines.run.runner import count_finished, plan_job, run_round
from pipelines.run.sink import OutputTable, merge_part
from pipelines.run.stopping import Stop
from pipelines.run.verify import reopen_damaged
from pipelines.run.work_units import ShardTask, Unit
from pipelines.sources.fetch import ImageFetcher
from pipelines.sources.record import ImageRecord
from pipelines.storage import Folder

SHARD_SIZE = 256
FRAGMENT_ROWS, UNIT_ROWS, ACTORS = 256, 1024, 64
_FOLDER = 1000
_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("uri", pa.string()), ("size", pa.int64())],
    metadata={b"ovss_schema": b"names/1"},
)
_TABLE = OutputTable("names", _SCHEMA, lambda rows: {})
PHASES = ("list", "plan", "loop", "resume")


class SyntheticSource:
    """Names of files that do not exist, a thousand in a folder.

    Args:
        count: How many.
    """

    uri = "/synthetic"
    ignored = 0

    def __init__(self, count: int) -> None:
        self.count = count

    def describe(self) -> dict[str, Any]:
        """Return what identifies it."""
        return {"kind": "synthetic", "uri": self.uri, "count": self.count}

    def fetcher(self, max_bytes: int, timeout_s: float) -> ImageFetcher:
        """Return a fetcher, which finds nothing."""
        return ImageFetcher(self.uri, None, max_bytes, timeout_s)

    def containers(self) -> list[str] | None:
        """Say that each image is its own file."""
        return None

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        """List them."""
        for number in range(self.count):
            name = f"{number // _FOLDER:06d}/{number:09d}.jpg"
            yield ImageRecord(name, f"file:///synthetic/{name}", "file", path=f"/synthetic/{name}")


class NoExecution:
    """Says at once that every image of every unit is stored; nothing is written."""

    def __init__(self) -> None:
        self.fragments = 0

    def written(self, units: Sequence[Unit]) -> Iterator[Mapping[str, Any]]:
        """Yield what the write stage would report, a fragment of `FRAGMENT_ROWS` images after the other."""
        for unit in units:
            for slice_ in () if isinstance(unit, ShardTask) else unit:
                for start in range(0, left := slice_.count_unfinished(), FRAGMENT_ROWS):
                    stored = min(FRAGMENT_ROWS, left - start)
                    self.fragments += 1
                    yield {
                        "part": slice_.part,
                        "labelled": stored,
                        "failed": 0,
                        "part_images": None,
                        "reasons": "{}",
                    }

    def merge(self, part: str) -> None:
        """Do nothing: workers merge."""

    def publish(self, number: int, parts: Mapping[str, int]) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def finished(self) -> int:
        """Return nothing."""
        return 0

    def noted(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Do nothing."""


def job_of(output: Folder, count: int) -> Job:
    """Return a run of so many images on 64 workers."""
    stage = ActorStage("none", object, {}, Pool("none", ACTORS, 1.0), 64)
    source = SyntheticSource(count)
    return Job(output, source, [stage], _TABLE, unit_rows=UNIT_ROWS, fragment_rows=FRAGMENT_ROWS)


def carry_out_phase(phase: str, place: str, count: int, shard_size: int = SHARD_SIZE) -> dict[str, float]:
    """Do one phase in this process.

    Args:
        phase: Of `PHASES`, in that order.
        place: The output, which the phases before left behind.
        shard_size: Images of a part.

    Returns:
        ``seconds``, ``core_seconds`` of this process, ``peak_mb`` and ``after_mb`` (of memory, when it is over), and what
        else is of interest.
    """
    output = Folder(place)
    job, before = job_of(output, count), _resident_mb()
    start, begun_cpu = time.perf_counter(), time.process_time()
    told: dict[str, float] = {}
    if phase in ("list", "resume"):
        manifest = prepare_manifest(output, job.source, shard_size)
        told["listing_s"] = time.perf_counter() - start
        told["listed_mb"] = _resident_mb()
    else:
        manifest = read_manifest(output)
    if phase != "list":
        reopen_damaged(output, manifest, job.table)
        plan = plan_job(job, manifest)
        told |= {"units": len(plan.units), "planned_mb": _resident_mb()}
    if phase in ("loop", "resume"):
        with shown_by(), ProgressReport(manifest.images) as progress:
            count_finished(job, manifest, plan, progress)
            told["ready_s"] = time.perf_counter() - start
            execution, begun = NoExecution(), time.perf_counter()
            run_round(manifest, plan, execution, progress, Stop())
        assert progress.done == count
        told["fragments_a_minute"] = 60 * execution.fragments / (time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": time.perf_counter() - start,
        "core_seconds": time.process_time() - begun_cpu,
        "start_mb": before,
        "peak_mb": peak,
        **told,
        "after_mb": _resident_mb(),
    }


def finish_half(place: str) -> None:
    """Finish every second part, and leave a fragment in each of a hundred others, as a run that was killed does."""
    output = Folder(place)
    parts = list(read_manifest(output).parts)

    def finish(number: int) -> None:
        part = parts[number]
        listed = read_part(output, part, ["image_id", "uri"])
        rows = listed.append_column("size", pa.nulls(listed.num_rows, pa.int64())).cast(_SCHEMA)
        begun = number % 2 == 1
        write_fragment(output, part, {_TABLE.name: rows.slice(0, 100) if begun else rows}, {})
        if not begun:
            merge_part(place, part, _TABLE)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(finish, [*range(0, len(parts), 2), *range(1, len(parts), 2)[:100]]))


def measure(
    count: int, root: str | None = None, shard_size: int = SHARD_SIZE, phases: Sequence[str] = PHASES
) -> Iterator[tuple[str, dict[str, float]]]:
    """Run phases for so many images, each in a process of its own, and yield what each took."""
    with tempfile.TemporaryDirectory(dir=root) as place:
        for phase in phases:
            if phase == "resume":
                finish_half(place)
            command = [
                sys.executable,
                "-m",
                __spec__.name,
                "--phase",
                phase,
                "--place",
                place,
                "--images",
                str(count),
                "--shard-size",
                str(shard_size),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            yield phase, json.loads(done.stdout)


def _resident_mb() -> float:
    """Return the memory of this process in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def as_row(count: int, phase: str, took: Mapping[str, float]) -> str:
    """Return a table's row for people."""
    row = (
        f"| {count:,} | {phase} | {took['seconds']:.1f} | {took['core_seconds']:.1f} | {took['peak_mb']:,.0f} | "
        f"{took['after_mb']:,.0f} |"
    )
    return f"{row} {took['fragments_a_minute']:,.0f} |" if "fragments_a_minute" in took else f"{row} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m pipelines.benchmark.scale", description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000_000], help="Sizes of the corpus.")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="Images of a part.")
    parser.add_argument("--last", choices=PHASES, default=PHASES[-1], help="The phase to end with.")
    parser.add_argument("--root", help="Folder for what is written meanwhile; about 30 bytes an image.")
    parser.add_argument(
        "--phase", choices=PHASES, help="One phase, in this process, on what the others left."
    )
    parser.add_argument("--place", help="Where that is.")
    given = parser.parse_args(arguments)
    if given.phase:
        print(json.dumps(carry_out_phase(given.phase, given.place, given.images[0], given.shard_size)))
        return 0
    phases = PHASES[: PHASES.index(given.last) + 1]
    print("| images | phase | seconds | core-seconds | peak MB | MB after | fragments a minute |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for count in given.images:
        for phase, took in measure(count, given.root, given.shard_size, phases):
            print(as_row(count, phase, took), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
