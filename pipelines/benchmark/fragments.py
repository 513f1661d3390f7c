"""Fragments a minute that Ray, the workers and one driver commit together, with stages that do nothing on images of no size.

A run of so many files of a few bytes goes through `pipelines.run.runner.run_job` as any does: listed, read, through one
actor stage, stored by fragments, merged and published. Counted are the fragments between the first that is stored and
the last, so start-up is left out. What the driver's own bookkeeping takes is in `pipelines.benchmark.scale`.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from pipelines.run.capacity import Pool
from pipelines.run.cluster import connected
from pipelines.run.events import shown_by
from pipelines.run.execution import ActorStage, Job
from pipelines.run.manifest import prepare_manifest
from pipelines.run.progress import ProgressReport
from pipelines.run.runner import run_job
from pipelines.run.schema import result_type
from pipelines.run.sink import OutputTable
from pipelines.run.stage import RowStage
from pipelines.sources import FolderSource
from pipelines.storage import Folder

_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("uri", pa.string()), ("size", pa.int64())],
    metadata={b"ovss_schema": b"sizes/1"},
)
_TABLE = OutputTable("sizes", _SCHEMA, lambda rows: {})


class Sizes(RowStage):
    """Counts an image's bytes, and does nothing else."""

    name: ClassVar[str] = "sizes"
    output_type: ClassVar[pa.DataType] = result_type(_SCHEMA)

    def work(self, rows: Sequence[dict[str, bytes]]) -> list[dict[str, int]]:
        """Count."""
        return [{"size": len(row["image"])} for row in rows]


class _Timed(ProgressReport):
    """Notes when fragments were stored."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.stored: list[float] = []

    def advance(self, labelled: int, failed: int, reasons: Mapping[str, int] | None = None) -> None:
        super().advance(labelled, failed, reasons)
        self.stored.append(time.monotonic())


def measure(count: int, fragment_rows: int, root: str | None = None) -> tuple[int, float, float]:
    """Run so many images, and return fragments, fragments a minute, and the driver's peak of memory in MB."""
    with tempfile.TemporaryDirectory(dir=root) as place:
        images = Path(place, "images")
        for number in range(count):
            file = images / f"{number // 1000:05d}" / f"{number:08d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"nothing")
        source, output = FolderSource(str(images)), Folder(f"{place}/out")
        stage = ActorStage("sizes", Sizes, {}, Pool("sizes", 1, 0.5), 256)
        job = Job(output, source, [stage], _TABLE, unit_rows=1024, fragment_rows=fragment_rows)
        with shown_by(), _Timed(count) as progress:
            run_job(job, prepare_manifest(output, source, job.shard_size), progress)
        stored = progress.stored
    minutes = (stored[-1] - stored[0]) / 60
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return len(stored), (len(stored) - 1) / minutes, peak


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m pipelines.benchmark.fragments", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000, help="Files of seven bytes.")
    parser.add_argument(
        "--fragment-rows", type=int, nargs="+", default=[256, 32], help="Images of a fragment."
    )
    parser.add_argument("--root", help="Folder for what is written meanwhile.")
    given = parser.parse_args(arguments)
    print(
        "| images | rows of a fragment | fragments | fragments a minute | driver's peak MB |\n|---|---|---|---|---|"
    )
    with connected(None, False):
        for rows in given.fragment_rows:
            fragments, speed, peak = measure(given.images, rows, given.root)
            print(f"| {given.images:,} | {rows} | {fragments:,} | {speed:,.0f} | {peak:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
