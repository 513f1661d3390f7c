"""The read stage: from a unit of work to image bytes, a small table at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipelines.faults import Attempts, Failure, process_all
from pipelines.run import metrics
from pipelines.run.manifest_files import read_part
from pipelines.run.schema import CARRIER, ORIGINAL, WORDS_CARRIER
from pipelines.run.shards import ShardReader
from pipelines.run.work_units import ShardTask, Slice, unpack_units
from pipelines.sources.fetch import ROWS, STAGE, ImageFetcher, Row
from pipelines.sources.image_words import ImageWords, Texts
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
        words: Reads the words of each image, which go with it (`WORDS_CARRIER`); None where images bring none.
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
        words: ImageWords | None = None,
    ) -> None:
        self.output = Folder(output)
        self.fetcher = fetcher
        self.threads = threads
        self.keep_images = keep_images
        self.words = words
        self.ledger = ledger
        self.shards = ShardReader(
            self.output,
            fetcher.source,
            fields or ImageFields(),
            fetcher.max_bytes,
            shard_size,
            ledger,
            fetcher.timeout_s,
            words,
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
                yield _carry(slice_.part, chosen, self._fetch(chosen, pool), self.words is not None)

    def _fetch(
        self, rows: Sequence[Row], pool: ThreadPoolExecutor
    ) -> Sequence[tuple[bytes, Texts] | Failure]:
        def fetch(chosen: Sequence[Row]) -> list[tuple[bytes, Texts] | Failure]:
            fetched = self.fetcher.fetch(chosen, pool)
            words = [None] * len(chosen) if self.words is None else self.words.read(chosen, pool)
            return [
                image if isinstance(image, Failure) else own if isinstance(own, Failure) else (image, own)
                for image, own in zip(fetched, words, strict=True)
            ]

        return process_all(STAGE, [row["image_id"] for row in rows], rows, fetch, self.ledger)


def _carry(
    part: str, rows: Sequence[Row], fetched: Sequence[tuple[bytes, Texts] | Failure], with_words: bool
) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "part": [part] * len(rows),
        "image_id": [row["image_id"] for row in rows],
        "uri": [row["uri"] for row in rows],
        "annotation": [row["annotation"] for row in rows],
        "image": [None if isinstance(value, Failure) else value[0] for value in fetched],
        "failure": [value.to_dict() if isinstance(value, Failure) else None for value in fetched],
        "seconds": [None] * len(rows),
        "part_images": [None] * len(rows),
    }
    if not with_words:
        return pa.table(columns, schema=CARRIER)
    columns["own_words"] = [None if isinstance(value, Failure) else value[1] for value in fetched]
    return pa.table(columns, schema=WORDS_CARRIER)
