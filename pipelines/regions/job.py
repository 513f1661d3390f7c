"""The job: every image of a source to a region map, an index PNG under ``maps/`` that ``--region-maps`` reads."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovss_core.config import GeneratorConfig
from ovss_core.images.decode import decode_image
from ovss_core.regions.generators import load_generator
from pipelines.preflight import say_once
from pipelines.regions.checks import check_regions
from pipelines.run.compute import pick_device, use_threads
from pipelines.run.ledger import AttemptLedger
from pipelines.run.lifecycle import Course, carry_out, open_source
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from pipelines.run.pools import WorkerPlan
from pipelines.run.runner import ActorStage
from pipelines.run.schema import result_type
from pipelines.run.sink import OutputTable
from pipelines.run.stage import RowStage
from pipelines.sources import Source
from pipelines.sources.region_maps import region_file
from pipelines.storage import Folder

MAPS = "maps"
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field(
            "regions", pa.int32(), nullable=False, metadata={"description": "Regions of the image's map."}
        ),
        pa.field(
            "covered",
            pa.float32(),
            nullable=False,
            metadata={"description": "Share of pixels in some region."},
        ),
    ],
    metadata={b"ovss_schema": b"regions/1"},
)
TABLE = OutputTable("regions", SCHEMA, lambda rows: {"regions": pc.sum(rows["regions"]).as_py() or 0})


class RegionStage(RowStage):
    """Image files to region maps; a map is written before its row, so a row that is there has its map.

    Args:
        config: Names the mask generator.
        output: Folder of the run; maps lie under ``maps/`` in it, named as `pipelines.sources.region_maps` reads them.
        device: Where to compute.
        torch_threads: Threads of a worker on CPUs.
        ledger: Finds images that kill their worker.
    """

    name = "regions"
    output_type = result_type(SCHEMA)

    def __init__(
        self,
        config: GeneratorConfig,
        output: str,
        device: str = "auto",
        torch_threads: int | None = None,
        ledger: AttemptLedger | None = None,
    ) -> None:
        super().__init__(ledger)
        use_threads(torch_threads)
        self._config, self._output = config, Folder(output)
        self._generator = load_generator(config, pick_device(device))

    def work(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Decode, find regions, and write the map; a file that is no image fails alone."""
        return [self._one(row) for row in rows]

    def _one(self, row: dict[str, Any]) -> dict[str, Any]:
        found = self._generator.generate(decode_image(row["image"], self._config.max_pixels))
        self._output.write(f"{MAPS}/{region_file(row['image_id'])}", found.to_png())
        return {"regions": int(found.ids.max()), "covered": float(np.mean(found.ids > 0))}


def run_regions(
    source: SourceOptions, run: RunOptions, pools: PoolOptions, config: GeneratorConfig
) -> dict[str, Any]:
    """Make the region map of every image of the source, and return the summary."""
    say_once(check_regions(source, run, pools))
    opened = open_source(source.place, source.open, run)
    summary, _ = carry_out(
        Course(
            source=opened,
            run=run,
            pools=pools,
            table=TABLE,
            identity=partial(
                _identity, opened, run, config, cache(partial(hash_generator, config.generator))
            ),
            stages=partial(_stages, run, pools, config),
            max_bytes=source.max_bytes,
            fetch_timeout_s=source.fetch_timeout_s,
        )
    )
    return summary


def _stages(
    run: RunOptions, pools: PoolOptions, config: GeneratorConfig, plan: WorkerPlan, _: Any
) -> list[ActorStage]:
    arguments = {
        "config": config,
        "output": run.output,
        "device": pools.device,
        "torch_threads": plan.torch_threads,
    }
    return [ActorStage("regions", RegionStage, arguments, plan.propose, plan.batch_size)]


def _identity(
    source: Source, run: RunOptions, config: GeneratorConfig, generator_hash: Callable[[], str | None], _: Any
) -> dict[str, Any]:
    deciding = asdict(config)
    del deciding["points_at_once"]
    return {
        "job": "regions",
        "schema": "regions/1",
        "source": source.describe(),
        "generator": deciding,
        "generator_hash": generator_hash(),
        "shard_size": run.shard_size,
    }


def hash_generator(name: str) -> str | None:
    """Hash the weights of a generator in a local folder (SHA-256); None for one of the hub, which its name tells."""
    weights = sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []
    if not weights:
        return None
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as opened:
            hashlib.file_digest(opened, lambda: digest)  # goes on with the same hash
    return digest.hexdigest()
