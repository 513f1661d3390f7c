"""The read stage: from a slice of the manifest to image bytes, a small table at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.faults import Failure
from pipelines.fetch import ROWS, Fetched, ImageFetcher, Row
from pipelines.manifest import read_part
from pipelines.schema import CARRIER
from pipelines.storage import Folder


class ReadImages:
    """Fetch the bytes of the images that slices of manifest parts list.

    `read` takes rows ``part, start, stop, skip`` (`skip`: packed bits, one an image of the slice, 1 = finished) and
    yields tables of `CARRIER`. Whatever cannot be fetched travels on as a row with a failure.

    Args:
        output: URI of the run's output, where the manifest is.
        source: URI of the source's root, which opens the file system of the records' paths.
        image_column: Column of the images in Parquet containers.
        max_bytes: A larger file is refused before it is read.
        threads: Files fetched at once.
        timeout_s: Seconds that one file may take to arrive.
    """

    def __init__(
        self,
        output: str,
        source: str,
        image_column: str | None = None,
        max_bytes: int = 1 << 28,
        threads: int = 8,
        timeout_s: float = 60.0,
    ) -> None:
        self.output = Folder(output)
        self.fetcher = ImageFetcher(source, image_column, max_bytes, timeout_s)
        self.threads = threads

    def read(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the images of each slice."""
        with ThreadPoolExecutor(self.threads) as pool:
            for slice_ in batch.to_pylist():
                rows = _unfinished(read_part(self.output, slice_["part"]), slice_)
                for start in range(0, len(rows), ROWS):
                    chosen = rows[start : start + ROWS]
                    yield _carry(slice_["part"], chosen, self.fetcher.fetch(chosen, pool))


def pack_slice(part: int, start: int, stop: int, finished: np.ndarray) -> Row:
    """Describe images `start` to `stop` of a part for `ReadImages`; `finished` is bool, one an image."""
    return {"part": part, "start": start, "stop": stop, "skip": np.packbits(finished).tobytes()}


def _unfinished(part: pa.Table, slice_: Row) -> list[Row]:
    size = slice_["stop"] - slice_["start"]
    skip = np.unpackbits(np.frombuffer(slice_["skip"], np.uint8), count=size).astype(bool)
    rows = part.slice(slice_["start"], size)
    chosen: list[Row] = rows.filter(pa.array(~skip)).to_pylist()
    return chosen


def _carry(part: int, rows: Sequence[Row], fetched: Sequence[Fetched]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "part": [part] * len(rows),
        "image_id": [row["image_id"] for row in rows],
        "uri": [row["uri"] for row in rows],
        "annotation": [row["annotation"] for row in rows],
        "image": [None if isinstance(value, Failure) else value for value in fetched],
        "failure": [value.to_dict() if isinstance(value, Failure) else None for value in fetched],
        "seconds": [None] * len(rows),
    }
    return pa.table(columns, schema=CARRIER)
