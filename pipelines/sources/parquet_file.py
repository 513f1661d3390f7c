"""An open Parquet file that is read within bounds: one pass over a column, and no page that takes too much memory.

pyarrow is asked for few rows at a time and reads small pieces, so what is in memory is one page and the values of
those rows. Files are read through `PageGuard`, which looks at each page before pyarrow unpacks it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from ovss_core.errors import ImageError, StorageError
from pipelines.sources.parquet_columns import is_dictionary_inside, is_list_inside
from pipelines.sources.parquet_footer import Footer
from pipelines.sources.parquet_guard import PageGuard
from pipelines.sources.parquet_pages import LargePageError, PageLimits, column_chunks

_BUFFER_BYTES = 1 << 16
_ROWS_TOGETHER = 64
_SMALL_BYTES = 1 << 20
_BATCH_BYTES = 1 << 26
_PIECE_BYTES = 1 << 25


class TableFile:
    """An open Parquet file whose columns are read within bounds.

    Args:
        root: URI that opens the file system.
        path: The file's path inside it.
        max_value: Bytes of the largest value that anybody wants.
        limit_s: Seconds for each read.

    Raises:
        TransferError: The storage failed.
        OSError, ValueError: The file is none of Parquet.
    """

    def __init__(self, root: str, path: str, max_value: int, limit_s: float = 60.0) -> None:
        self._limits = PageLimits(max_value)
        self._guard = PageGuard(root, path, limit_s)
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
        self.size = self._guard.size

    @cached_property
    def footer(self) -> Footer:
        """Where the columns lie."""
        return Footer(self._guard.read_footer())

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
            rows = self._rows_of(group, [column], _BATCH_BYTES)
            pieces = self._read_pieces(group, [column], rows, piles_up=True)
        elif is_list_inside(kind):  # one value may go over many pages
            pieces = self._read_pieces(group, [column], 1)
        else:
            pieces = self.read_values(group, [column])
        for batch in pieces:
            yield batch.column(column)

    def read_values(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield columns, many rows at once as long as the pages are small."""
        return self._read_pieces(group, columns, self._rows_of(group, columns, _SMALL_BYTES))

    def _rows_of(self, group: int, columns: Sequence[str], size: int) -> int:
        """Return how many rows have about so many bytes, as the footer claims."""
        values = sum(leaf.unpacked for leaf in self.footer.leaves(group, columns))
        rows = self.metadata.row_group(group).num_rows
        return int(max(1, min(_ROWS_TOGETHER, size * rows // max(1, values))))

    def _read_pieces(
        self, group: int, columns: Sequence[str], rows: int, piles_up: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Yield so many rows at once, but fewer where a page is large, and one where damage would cost them all.

        Args:
            piles_up: Set for columns that are read as dictionaries, whose values are in memory once.
        """
        done = 0
        while True:
            together = None if rows == 1 or piles_up else _PIECE_BYTES // rows
            passed = 0
            try:
                for batch in self._read(group, columns, rows, together, piles_up):
                    passed += len(batch)
                    if passed > done:
                        yield batch.slice(len(batch) - (passed - done))
                        done = passed
            except StorageError:
                raise
            except LargePageError as error:
                rows = max(1, min(rows // 2, _PIECE_BYTES // error.size))
            except Exception:
                if rows == 1:
                    raise
                rows = 1
            else:
                return

    def _read(
        self, group: int, columns: Sequence[str], rows: int, together: int | None, piles_up: bool
    ) -> Iterator[pa.RecordBatch]:
        leaves = self.footer.leaves(group, columns)
        chunks = column_chunks(leaves, self.metadata.schema, piles_up)
        self._guard.watch(chunks, replace(self._limits, together=together))
        # threads would read columns at the same time, and the guard's file has one position
        for batch in self._file.iter_batches(rows, [group], list(columns), use_threads=False):
            self._guard.release()
            yield batch
