"""The read stage: from a unit of work to image bytes, a small table at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipelines.faults import Attempts, Failure, process_all
from pipelines.run import metrics
from pipelines.run.manifest_files import read_part
from pipelines.run.schema import CARRIER, ORIGINAL
from pipelines.run.shards import ShardReader
from pipelines.run.work_units import ShardTask, Slice, unpack_units
from pipelines.sources.fetch import ROWS, STAGE, Fetched, ImageFetcher, Row
from pipelines.sources.tar_stream import ImageFields
from pipelines.storage import Folder


class ReadImages:
    """Fetch the bytes of images: those that slices of manifest parts list, or all of a shard.

    `read` takes rows with a column ``unit`` (see `pipelines.run.work_units`) and yields tables of `CARRIER`. Whatever
    cannot be fetched travels on as a row with a failure.

    Args:
        output: URI of the run's output, where the manifest is.
        fetcher: The source's own.
        threads: Files fetched at once.
        fields: Which members of a shard are images.
        shard_size: Images of a part of a shard.
        ledger: Finds images whose reading kills the worker; None outside `run_job`.
        keep_images: Hand the bytes on a second time, in the column `ORIGINAL`, which no stage touches.
    """

    def __init__(
        self,
        output: str,
        fetcher: ImageFetcher,
        threads: int = 8,
        fields: ImageFields | None = None,
        shard_size: int = 256,
        ledger: Attempts | None = None,
        keep_images: bool = False,
    ) -> None:
        self.output = Folder(output)
        self.fetcher = fetcher
        self.threads = threads
        self.keep_images = keep_images
        self.ledger = ledger
        self.shards = ShardReader(
            self.output,
            fetcher.source,
            fields or ImageFields(),
            fetcher.max_bytes,
            shard_size,
            ledger,
            fetcher.timeout_s,
        )

    def read(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the images of each unit."""
        with ThreadPoolExecutor(self.threads) as pool:
            for unit in unpack_units(batch):
                if self.ledger is not None and self.ledger.is_stopping():
                    return
                read = self.shards.read(unit) if isinstance(unit, ShardTask) else self._slices(unit, pool)
                for table in read:
                    metrics.count_stage(STAGE, table.num_rows, {}, read_bytes=table["image"].nbytes)
                    yield table.append_column(ORIGINAL, table["image"]) if self.keep_images else table

    def _slices(self, slices: Sequence[Slice], pool: ThreadPoolExecutor) -> Iterator[pa.Table]:
        for slice_ in slices:
            rows: list[Row] = slice_.unfinished(read_part(self.output, slice_.part))
            for start in range(0, len(rows), ROWS):
                chosen = rows[start : start + ROWS]
                yield _carry(slice_.part, chosen, self._fetch(chosen, pool))

    def _fetch(self, rows: Sequence[Row], pool: ThreadPoolExecutor) -> Sequence[Fetched]:
        def fetch(chosen: Sequence[Row]) -> list[Fetched]:
            return self.fetcher.fetch(chosen, pool)

        return process_all(STAGE, [row["image_id"] for row in rows], rows, fetch, self.ledger)


def _carry(part: str, rows: Sequence[Row], fetched: Sequence[Fetched]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "part": [part] * len(rows),
        "image_id": [row["image_id"] for row in rows],
        "uri": [row["uri"] for row in rows],
        "annotation": [row["annotation"] for row in rows],
        "image": [None if isinstance(value, Failure) else value for value in fetched],
        "failure": [value.to_dict() if isinstance(value, Failure) else None for value in fetched],
        "seconds": [None] * len(rows),
        "part_images": [None] * len(rows),
    }
    return pa.table(columns, schema=CARRIER)
