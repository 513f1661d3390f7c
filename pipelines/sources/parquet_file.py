"""An open Parquet file that is read within bounds: one pass over a column, and no page that takes too much memory.

pyarrow is asked for few rows at a time and reads small pieces, so what is in memory is one page and the values of
those rows. Files are read through `PageGuard`, which looks at each page before pyarrow unpacks it.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ovss_core.errors import ImageError, StorageError
from pipelines.sources.parquet_columns import is_dictionary_inside, is_list_inside
from pipelines.sources.parquet_pages import PageGuard, PageLimits

_BUFFER_BYTES = 1 << 16
_ROWS_TOGETHER = 64
_PAGE_TOGETHER = 1 << 20
_BATCH_BYTES = 1 << 26


class TableFile:
    """An open Parquet file whose columns are read within bounds.

    Args:
        max_value: Bytes of the largest value that anybody wants.

    Raises:
        OSError, ValueError: The file is none of Parquet, or cannot be read.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str, max_value: int) -> None:
        self._limits = PageLimits(max_value)
        self._guard = PageGuard(filesystem, path)
        try:
            # without pre_buffer and with a buffer, pyarrow reads a column piece by piece instead of all at once
            self._file = pq.ParquetFile(
                pa.PythonFile(self._guard, "r"), pre_buffer=False, buffer_size=_BUFFER_BYTES
            )
        except BaseException:
            self._guard.close()
            raise
        self.metadata: pq.FileMetaData = self._file.metadata
        self.schema: pa.Schema = self._file.schema_arrow

    def close(self) -> None:
        """Close the file."""
        self._guard.close()

    def column_type(self, name: str) -> pa.DataType | None:
        """Return the type of a column; None where there is none.

        Raises:
            ImageError: Several columns have the name.
        """
        places = self.schema.get_all_field_indices(name)
        if len(places) > 1:
            raise ImageError(f"the file has {len(places)} columns named {name!r}")
        return self.schema.field(places[0]).type if places else None

    def read_images(self, group: int, column: str) -> Iterator[pa.Array]:
        """Yield a column in pieces of so few rows that a piece takes little more than one page."""
        kind = self.schema.field(column).type
        if is_dictionary_inside(kind):
            # each piece of a dictionary column brings the dictionary along, and refers to it
            size = max(1, int(self._value_bytes(group, [column])))
            rows = max(1, min(_ROWS_TOGETHER, _BATCH_BYTES // size))
            pieces = self._read_pieces(group, [column], rows, self._limits, piles_up=True)
        elif is_list_inside(kind):  # one value may go over many pages
            pieces = self._read_pieces(group, [column], 1, self._limits)
        else:
            pieces = self.read_values(group, [column])
        for batch in pieces:
            yield batch.column(column)

    def read_values(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield columns, many rows at once as long as the pages are small."""
        if self._value_bytes(group, columns) * _ROWS_TOGETHER > _PAGE_TOGETHER:
            return self._read_pieces(group, columns, 1, self._limits)
        limits = PageLimits(self._limits.max_value, together=_PAGE_TOGETHER)
        return self._read_pieces(group, columns, _ROWS_TOGETHER, limits)

    def _value_bytes(self, group: int, columns: Sequence[str]) -> float:
        """Return the bytes of the values of a row, on average, as the footer claims."""
        row_group = self.metadata.row_group(group)
        leaves = [row_group.column(index) for index in range(row_group.num_columns)]
        size = sum(
            leaf.total_uncompressed_size
            for leaf in leaves
            if leaf.path_in_schema.partition(".")[0] in columns
        )
        return float(size / max(1, row_group.num_rows))

    def _read_pieces(
        self, group: int, columns: Sequence[str], rows: int, limits: PageLimits, piles_up: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Yield so many rows at once, but one at a time where a page is large, or damage would cost them all."""
        done = 0
        try:
            for batch in self._read(group, columns, rows, limits, piles_up):
                done += len(batch)
                yield batch
        except Exception as error:
            if rows == 1 or isinstance(error, StorageError):
                raise
            for batch in self._read(group, columns, 1, self._limits, piles_up):
                if done:
                    done -= 1
                else:
                    yield batch

    def _read(
        self, group: int, columns: Sequence[str], rows: int, limits: PageLimits, piles_up: bool
    ) -> Iterator[pa.RecordBatch]:
        self._guard.watch(self.metadata, group, columns, limits, piles_up)
        # threads would read columns at the same time, and the guard's file has one position
        for batch in self._file.iter_batches(rows, [group], list(columns), use_threads=False):
            self._guard.release()
            yield batch
