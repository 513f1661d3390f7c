"""Fetching the bytes of one image, wherever a record says they lie; what cannot be had is a failure with a reason."""

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import pyarrow as pa

from ovss_core.errors import ImageError, StorageError
from pipelines.faults import Failure, clean_reason
from pipelines.sources.parquet_rows import ParquetRows
from pipelines.storage import open_storage
from pipelines.transport.causes import blamed_on
from pipelines.transport.limits import check_size
from pipelines.transport.whole import read_address, read_inside

STAGE = "read"
ROWS = 16
_SPAN_BYTES = 1 << 24
Row = dict[str, Any]
Fetched = bytes | Failure


class ImageFetcher:
    """Fetches the bytes of manifest rows.

    Args:
        source: URI of the source's root, which opens the file system of the records' paths.
        image_column: Column of the images in Parquet containers.
        max_bytes: A larger file is refused before it is read, or as soon as it turns out to be larger.
        timeout_s: Seconds that one file may take to arrive, tries and waits included.
    """

    def __init__(
        self,
        source: str,
        image_column: str | None = None,
        max_bytes: int = 1 << 28,
        timeout_s: float = 60.0,
    ) -> None:
        self.source = source
        self.image_column = image_column
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s
        self._tables = ParquetRows(source, image_column, max_bytes, timeout_s)

    def fetch(self, rows: Sequence[Row], pool: ThreadPoolExecutor) -> list[Fetched]:
        """Return the bytes of manifest rows, or why they cannot be had, in order."""
        fetched: list[Fetched] = []
        for (container, _, _), group in groupby(rows, _batch_key):
            members = list(group)
            if container == "parquet":
                fetched.extend(self._table_rows(members, pool))
            elif container == "tar":
                fetched.extend(self._tar_members(members))
            elif container == "broken":
                fetched.extend(
                    Failure("list", "StorageError", clean_reason(row["reason"])) for row in members
                )
            else:
                fetched.extend(pool.map(self._file, members))
        return fetched

    def _table_rows(self, rows: list[Row], pool: ThreadPoolExecutor) -> list[Fetched]:
        """Read cells; where a cell holds an address, fetch what lies there."""
        found = self._tables.read(rows)
        links = [value for value in found if isinstance(value, dict)]
        linked = pool.map(self._file, links)
        return [next(linked) if isinstance(value, dict) else value for value in found]

    def _file(self, row: Row) -> Fetched:
        try:
            return self.read(row)
        except (StorageError, ImageError) as error:
            return Failure.of(STAGE, error)

    def read(self, row: Row) -> bytes:
        """Return the bytes of one image that lies neither in a table nor in a tar; called from threads.

        A source whose images lie in another way gives a subclass (`pipelines.sources.record.Source.fetcher`) that reads
        its own kind of container here.

        Raises:
            StorageError: It could not be had; the message is one line without secrets.
            ImageError: It is too large, or no file.
        """
        if row["container"] == "uri":
            return self.read_address(row["path"])
        if row["container"] == "listed":
            return self.read_address(address_at(self.source, row))
        if row["path"] is None:  # the source is one file
            return self.read_address(self.source)
        return read_inside(self.source, row["path"], self.max_bytes, self.timeout_s)

    def read_address(self, address: str) -> bytes:
        """Return the whole file behind an address.

        Raises:
            StorageError: It could not be had; the message is one line without secrets.
            ImageError: It is too large, or no file.
        """
        return read_address(address, self.max_bytes, self.timeout_s)

    def _tar_members(self, rows: list[Row]) -> list[Fetched]:
        fetched: list[Fetched] = []
        try:
            with open_storage(self.source)[0].open_input_file(rows[0]["path"]) as stream:
                for span in _spans(rows, self.max_bytes):
                    fetched.extend(self._tar_span(stream, span))
        except (OSError, pa.ArrowException) as error:
            fetched += [Failure.of(STAGE, error)] * (len(rows) - len(fetched))
        return fetched

    def _tar_span(self, stream: Any, rows: list[Row]) -> list[Fetched]:
        """Read neighboring members at once: a request to an object store costs more than the bytes between."""
        try:
            check_size(rows[0]["length"], self.max_bytes)
        except ImageError as error:
            return [Failure.of(STAGE, error)]
        start = rows[0]["offset"]
        data = stream.read_at(rows[-1]["offset"] + rows[-1]["length"] - start, start)
        return [data[row["offset"] - start : row["offset"] - start + row["length"]] for row in rows]


def address_at(source: str, row: Mapping[str, Any]) -> str:
    """Return the address that a manifest row of container "listed" stands for, from the list itself.

    Raises:
        StorageError: The list cannot be read.
        ImageError: It has changed since it was listed.
    """
    with blamed_on(source), open_storage(source)[0].open_input_file(row["path"]) as stream:
        data: bytes = stream.read_at(row["length"], row["offset"])
    if zlib.crc32(data) != row["row"]:
        raise ImageError(
            "the list of images changed after it was listed; give it another name, or restore it"
        )
    return data.decode()


def _spans(rows: Sequence[Row], limit: int) -> list[list[Row]]:
    """Cut members of one tar, in its order, into runs that one request reads; too large a member stands alone."""
    spans: list[list[Row]] = []
    for row in rows:
        together = spans and row["length"] <= limit and spans[-1][0]["length"] <= limit
        end, start = row["offset"] + row["length"], spans[-1][0]["offset"] if spans else 0
        if together and start < row["offset"] and end - start <= _SPAN_BYTES:
            spans[-1].append(row)
        else:
            spans.append([row])
    return spans


def _batch_key(row: Row) -> tuple[str, str | None, int | None]:
    together = row["container"] in ("tar", "parquet")
    return row["container"], row["path"] if together else None, row["row_group"]
