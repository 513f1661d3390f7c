"""Reading the images of manifest rows out of Parquet files, each row group once."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from ovss_core.errors import ImageError, StorageError
from pipelines.faults import Failure
from pipelines.sources.parquet_columns import image_kind, locate, read_cell
from pipelines.sources.parquet_file import TableFile
from pipelines.storage import open_storage

STAGE = "read"
Row = dict[str, Any]


class ParquetRows:
    """Reads image cells of manifest rows; a row group stays open from one call to the next.

    Slices of the manifest that follow each other read each row group once for that reason. The object belongs to
    one thread at a time.

    Args:
        source: URI of the source's root, which opens the file system of the records' paths.
        column: Column of the images.
        max_bytes: A larger image is refused before it is copied.
    """

    def __init__(self, source: str, column: str | None, max_bytes: int) -> None:
        self.source = source
        self.column = column
        self.max_bytes = max_bytes
        self._open: _OpenGroup | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when the object travels."""
        return {**self.__dict__, "_open": None}

    def read(self, rows: Sequence[Row]) -> list[bytes | Failure | Row]:
        """Read rows of one row group.

        Returns:
            For each row its bytes, why they cannot be had, or a row of container "uri" or "file" that says where
            they lie.
        """
        if self._open is not None and isinstance(self._open.error, StorageError):
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
        group = self._group_at(row)
        value = read_cell(*group.seek(row["row"]), self.max_bytes)
        if value is None:
            return Failure(STAGE, "ImageError", "the image column is empty in this row")
        if isinstance(value, bytes):
            return value
        container, path = locate(value, self.source, row["path"].rpartition("/")[0])
        return {**row, "container": container, "path": path}

    def _group_at(self, row: Row) -> "_OpenGroup":
        place = (row["path"], row["row_group"])
        if self._open is None or self._open.place != place or row["row"] < self._open.first:
            self.close()
            self._open = _OpenGroup(open_storage(self.source)[0], place, str(self.column), self.max_bytes)
        return self._open

    def close(self) -> None:
        """Close the row group that is open."""
        if self._open is not None:
            self._open.close()
            self._open = None


class _OpenGroup:
    """A walk over the image column of one row group; what ends it is remembered for the rows behind."""

    def __init__(
        self, filesystem: pafs.FileSystem, place: tuple[str, int], column: str, max_bytes: int
    ) -> None:
        self.place = place
        self.first = 0
        self._piece: pa.Array | None = None
        self.error: Exception | None = None
        self._pieces: Iterator[pa.Array] = iter(())
        self._file: TableFile | None = None
        try:
            self._file = TableFile(filesystem, place[0], max_bytes)
            self._pieces = self._start(self._file, column)
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

    def close(self) -> None:
        """Close the file."""
        self._pieces = iter(())
        if self._file is not None:
            self._file.close()
