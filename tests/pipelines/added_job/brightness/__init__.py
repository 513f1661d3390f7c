"""How bright each image is: a job without a model, its checks, its stage and its table (`pipelines/brightness/`)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovss_core.images.decode import decode_image
from pipelines.preflight import check_run, require_apart, say_once
from pipelines.run.lifecycle import Course, carry_out, open_source
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from pipelines.run.pools import WorkerPlan
from pipelines.run.runner import ActorStage
from pipelines.run.schema import result_type
from pipelines.run.sink import OutputTable
from pipelines.run.stage import RowStage
from pipelines.run.weight_hashes import WeightHashes
from pipelines.sources import Source

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("brightness", pa.float64(), nullable=False),
    ],
    metadata={b"ovss_schema": b"brightness/1"},
)
TABLE = OutputTable("brightness", SCHEMA, lambda rows: {"sum": pc.sum(rows["brightness"]).as_py() or 0.0})


class BrightnessStage(RowStage):
    """Image files to the mean of their pixels."""

    name = "brightness"
    output_type = result_type(SCHEMA)

    def work(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Decode and average; a file that is no image fails alone."""
        return [{"brightness": float(np.mean(decode_image(row["image"], 1 << 24)))} for row in rows]


def check_brightness(source: SourceOptions, run: RunOptions, pools: PoolOptions) -> list[str]:
    """Refuse what cannot work; returns warnings."""
    require_apart(source.kind.places(), run.output)
    return check_run(run, pools, source.fetch_timeout_s)


def run_brightness(source: SourceOptions, run: RunOptions, pools: PoolOptions) -> dict[str, Any]:
    """Measure every image of the source, and return the summary."""
    say_once(check_brightness(source, run, pools))
    opened = open_source(source.place, source.open, run)
    summary, _ = carry_out(
        Course(
            source=opened,
            run=run,
            pools=pools,
            table=TABLE,
            identity=partial(_identity, opened, run),
            stages=_stages,
            max_bytes=source.max_bytes,
            fetch_timeout_s=source.fetch_timeout_s,
        )
    )
    return summary


def _stages(plan: WorkerPlan, _: None) -> list[ActorStage]:
    return [ActorStage("brightness", BrightnessStage, {}, plan.propose, plan.batch_size)]


def _identity(source: Source, run: RunOptions, _: WeightHashes) -> dict[str, Any]:
    return {
        "job": "brightness",
        "schema": "brightness/1",
        "source": source.describe(),
        "shard_size": run.shard_size,
    }
