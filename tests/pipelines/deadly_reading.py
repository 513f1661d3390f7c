"""Readers that end their own process, for tests with Ray."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.run import shards
from pipelines.run.reading import ReadImages
from pipelines.sources.fetch import Fetched, ImageFetcher, Row
from pipelines.sources.tar_stream import stream_tar

DEADLY = "003"


class DeadlyFetcher(ImageFetcher):
    """Ends the process when it fetches a certain image."""

    def fetch(self, rows: Sequence[Row], pool: ThreadPoolExecutor) -> list[Fetched]:
        if any(DEADLY in row["image_id"] for row in rows):
            os._exit(17)
        return super().fetch(rows, pool)


class DeadlyReader(ReadImages):
    """Ends its process at a certain image, of a folder or of a shard."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        fetcher = self.fetcher
        self.fetcher = DeadlyFetcher(fetcher.source, fetcher.image_column, fetcher.max_bytes)

    def read(self, batch: Any) -> Iterator[Any]:
        names = vars(shards)  # of this worker, which goes on to read for other tests
        names["stream_tar"] = _deadly_stream
        try:
            yield from super().read(batch)
        finally:
            names["stream_tar"] = stream_tar


def _deadly_stream(*arguments: Any) -> Iterator[Any]:
    for item in stream_tar(*arguments):
        if DEADLY in getattr(item, "key", ""):
            os._exit(17)
        yield item
