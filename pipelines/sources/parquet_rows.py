"""Reading the images of manifest rows out of Parquet files, each row group once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from ovss_core.errors import ImageError, StorageError
from pipelines.faults import Failure
from pipelines.sources.parquet_columns import image_kind, locate, read_cell
from pipelines.sources.parquet_file import TableFile

STAGE = "read"
Row = dict[str, Any]


class ParquetRows:
    """Reads image cells of manifest rows; a file stays open from one call to the next.

    Slices of the manifest that follow each other read each row group once for that reason. The object belongs to
    one thread at a time.

    Args:
        source: URI of the source's root, which opens the file system of the records' paths.
        column: Column of the images.
        max_bytes: A larger image is refused before it is copied.
        limit_s: Seconds for each read of a table.
    """

    def __init__(self, source: str, column: str | None, max_bytes: int, limit_s: float = 60.0) -> None:
        self.source = source
        self.column = column
        self.max_bytes = max_bytes
        self.limit_s = limit_s
        self._table: tuple[str, TableFile] | None = None
        self._walk: _Walk | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when the object travels."""
        return {**self.__dict__, "_table": None, "_walk": None}

    def read(self, rows: Sequence[Row]) -> list[bytes | Failure | Row]:
        """Read rows of one row group.

        Returns:
            For each row its bytes, why they cannot be had, or a row of container "uri" or "file" that says where
            they lie.
        """
        if self._walk is not None and isinstance(self._walk.error, StorageError):
            self.close()  # the store may be back
        found: dict[int, bytes | Failure | Row] = {}
        for place in sorted(range(len(rows)), key=lambda place: rows[place]["row"]):
            row = rows[place]
            try:
                found[place] = self._read_row(row)
            except Exception as error:
                found[place] = Failure.of(STAGE, error)
        return [found[place] for place in range(len(rows))]

    def _read_row(self, row: Row) -> bytes | Failure | Row:
        value = read_cell(*self._walk_to(row).seek(row["row"]), self.max_bytes)
        if value is None:
            return Failure(STAGE, "ImageError", "the image column is empty in this row")
        if isinstance(value, bytes):
            return value
        container, path = locate(value, self.source, row["path"].rpartition("/")[0])
        return {**row, "container": container, "path": path}

    def _walk_to(self, row: Row) -> "_Walk":
        place = (row["path"], row["row_group"])
        if self._walk is None or self._walk.place != place or row["row"] < self._walk.first:
            self._walk = _Walk(self._table_at, place, str(self.column))
        return self._walk

    def _table_at(self, path: str) -> TableFile:
        if self._table is None or self._table[0] != path:
            self.close()
            self._table = (path, TableFile(self.source, path, self.max_bytes, self.limit_s))
        return self._table[1]

    def close(self) -> None:
        """Close the file that is open."""
        if self._table is not None:
            self._table[1].close()
        self._table = self._walk = None


class _Walk:
    """A walk over the image column of one row group; what ends it is remembered for the rows behind."""

    def __init__(self, table: Callable[[str], TableFile], place: tuple[str, int], column: str) -> None:
        self.place = place
        self.first = 0
        self._piece: pa.Array | None = None
        self.error: Exception | None = None
        self._pieces: Iterator[pa.Array] = iter(())
        try:
            self._pieces = self._start(table(place[0]), column)
        except Exception as error:
            self.error = error

    def _start(self, file: TableFile, column: str) -> Iterator[pa.Array]:
        if self.place[1] >= file.metadata.num_row_groups:
            raise ImageError("the row is gone from the file")
        kind = file.column_type(column)
        if kind is None or image_kind(kind) is None:
            raise ImageError(f"column {column!r} is {kind or 'gone'} in this file")
        return file.read_images(self.place[1], column)

    def seek(self, row: int) -> tuple[pa.Array, int]:
        """Return the piece of the column that holds a row, and the row's place in it.

        Raises:
            Exception: The file cannot be read up to that row; the same again for every later row.
        """
        while self._piece is None or row >= self.first + len(self._piece):
            if self.error is not None:
                raise self.error
            if self._piece is not None:
                self.first += len(self._piece)
                self._piece = None
            try:
                self._piece = next(self._pieces)
            except StopIteration:
                self.error = ImageError("the row is gone from the file")
            except Exception as error:
                self.error = error
        return self._piece, row - self.first
