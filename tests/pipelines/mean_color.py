"""A small real job for tests of the runner: the mean color of each image, and ways to misbehave."""

import io
import os
import sys
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ovss_core.errors import ImageError
from pipelines.faults import Failure, process_all
from pipelines.run.capacity import Pool
from pipelines.run.ledger import AttemptLedger
from pipelines.run.runner import ActorStage, Job
from pipelines.run.schema import FAILURE, ROW_NAMES, result_type
from pipelines.run.sink import OutputTable
from pipelines.sources import Source
from pipelines.storage import Folder

SCHEMA = pa.schema(
    [("image_id", pa.string()), ("uri", pa.string()), ("mean", pa.float64()), ("png", pa.binary())],
    metadata={b"ovss_schema": b"means/1"},
)
assert SCHEMA.names[:2] == list(ROW_NAMES)


def summarize(table: pa.Table) -> dict[str, float]:
    return {"sum_of_means": pc.sum(table["mean"]).as_py() or 0.0}


MEANS = OutputTable("means", SCHEMA, summarize)


class MeanColor:
    """Compute the mean of an image's pixels; `poison` ids kill the worker, `wrong` ids are a programming error."""

    def __init__(
        self,
        poison: Sequence[str] = (),
        wrong: Sequence[str] = (),
        seconds: float = 0.0,
        ledger: AttemptLedger | None = None,
    ) -> None:
        self.poison, self.wrong, self.seconds, self.ledger = set(poison), set(wrong), seconds, ledger

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        good = [row for row in rows if row["failure"] is None]
        ids = [row["image_id"] for row in good]
        outcomes = dict(
            zip(
                ids,
                process_all(
                    "mean", ids, [(row["image_id"], row["image"]) for row in good], self.work, self.ledger
                ),
                strict=True,
            )
        )
        failures = [
            row["failure"]
            or (out.to_dict() if isinstance(out := outcomes[row["image_id"]], Failure) else None)
            for row in rows
        ]
        results = [
            None if failure else outcomes[row["image_id"]]
            for row, failure in zip(rows, failures, strict=True)
        ]
        table = batch.drop_columns(["image", "failure"])
        table = table.append_column("failure", pa.array(failures, FAILURE))
        return table.append_column("result", pa.array(results, result_type(SCHEMA)))

    def work(self, items: Sequence[tuple[str, bytes]]) -> list[dict[str, object]]:
        time.sleep(self.seconds * len(items))
        if any(image_id in self.wrong for image_id, _ in items):
            raise KeyError("a mistake in the program")
        if any(image_id in self.poison for image_id, _ in items):
            os._exit(17)
        return [{"mean": mean_of(data), "png": data[:8]} for _, data in items]


def mean_of(data: bytes) -> float:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return float(np.asarray(image.convert("RGB")).mean())
    except (OSError, SyntaxError) as error:
        raise ImageError(f"not an image: {type(error).__name__}") from error


def mean_job(output: str, source: Source, actors: int = 1, batch_size: int = 4, **arguments: object) -> Job:
    stage = ActorStage("mean", MeanColor, arguments, Pool("mean", actors, 0.5), batch_size)
    return Job(Folder(output), source, [stage], MEANS, fragment_rows=4, no_progress_s=300.0)


def main() -> None:
    """Run the job slowly in a process of its own, for tests that kill it: images, output, seconds an image."""
    from pipelines.run.manifest import prepare_manifest
    from pipelines.run.progress import ProgressReport
    from pipelines.run.runner import run_job
    from pipelines.sources import FolderSource
    from tests.forked_workers import local_ray

    images, output, seconds = sys.argv[1:]
    source = FolderSource(images)
    store = {"object_store_memory": 100_000_000}
    with local_ray(
        "tests.pipelines.mean_color", num_cpus=2, include_dashboard=False, logging_level="ERROR", **store
    ):
        manifest = prepare_manifest(Folder(output), source, 8)
        with ProgressReport(manifest.images) as progress:
            run_job(mean_job(output, source, actors=1, seconds=float(seconds)), manifest, progress)


if __name__ == "__main__":
    main()
