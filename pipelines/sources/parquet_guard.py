"""The file that pyarrow reads a table from: it looks at every page header on the way, at no cost in bytes.

A page that asks for too much memory is refused before pyarrow has the bytes that would make it take that memory.
"""

import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ovss_core.errors import ImageError, StorageError
from pipelines.sources.parquet_headers import PageHeader, read_page_header
from pipelines.sources.parquet_pages import ColumnChunk, PageLimits, column_chunks

_HEADER_BYTES = 1 << 24
_AHEAD_BYTES = 1 << 22
_WAITS_S = (0.5, 2.0, 8.0)


class PageGuard(io.RawIOBase):
    """A file for pyarrow that refuses pages which would take too much memory.

    Raises (from its reads, through pyarrow's):
        ImageError: A page is damaged, or larger than the limits allow.
        LargePageError: See `PageLimits.together`.
        StorageError: A store failed several times in a row.

    Args:
        path: The file's path inside the file system.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        super().__init__()
        self._path = path
        self._is_local = isinstance(filesystem, pafs.LocalFileSystem)
        self._file: pa.NativeFile = self._patiently(lambda: filesystem.open_input_file(path))
        self._limits = PageLimits(0)
        self._size: int = self._patiently(self._file.size)
        self._position = 0
        self._chunks: list[ColumnChunk] = []

    def watch(
        self,
        metadata: pq.FileMetaData,
        group: int,
        columns: Sequence[str],
        limits: PageLimits,
        piles_up: bool = False,
    ) -> None:
        """Watch the pages of columns of a row group from here on, instead of those watched before.

        Args:
            piles_up: Set for columns that are read as dictionaries.
        """
        self._limits = limits
        kept = {chunk.start: chunk.ahead for chunk in self._chunks}
        self._chunks = [
            chunk for column in columns for chunk in column_chunks(metadata, group, column, piles_up)
        ]
        before = 0
        for chunk in sorted(self._chunks, key=lambda chunk: chunk.start):
            if not before <= chunk.start <= chunk.end <= self._size or chunk.values < 0:
                raise ImageError(
                    f"the file is damaged: column {chunk.name!r} of row group {group} lies outside of the file or "
                    "in another column"
                )
            before = chunk.end
            chunk.ahead = kept.get(chunk.start, chunk.ahead)

    def release(self) -> None:
        """Note that a batch is complete: what was read for it is no longer held."""
        for chunk in self._chunks:
            chunk.held = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position."""
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, size: int | None = -1) -> bytes | bytearray:
        """Read at most to the end of a page, after a look at its header where it begins here."""
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        chunk = next((chunk for chunk in self._chunks if chunk.start <= self._position < chunk.end), None)
        if chunk is None:
            data: bytes | bytearray = self._read_at(wanted, self._position)
        else:
            if self._position == chunk.next_header:
                self._pass_header(chunk)
            elif self._position > chunk.next_header:
                raise chunk.damaged()
            data = self._read_ahead(chunk, min(wanted, chunk.next_header - self._position))
        self._position += len(data)
        return data

    def close(self) -> None:
        """Close the file behind."""
        if not self.closed:
            self._file.close()
        super().close()

    def _read_at(self, size: int, position: int) -> bytes:
        data: bytes = self._patiently(lambda: self._file.read_at(size, position))
        return data

    def _read_into(self, data: memoryview, position: int) -> int:
        self._file.seek(position)
        size: int = self._file.readinto(data)
        return size

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Ask a store again that may only be busy; what it says of one file, or a disk of its own, is final."""
        for wait in (*_WAITS_S, None):
            try:
                return call()
            except OSError as error:
                final = isinstance(error, FileNotFoundError | PermissionError) or "ACCESS_DENIED" in str(
                    error
                )
                if self._is_local or final:
                    raise
                if wait is None:
                    tries = len(_WAITS_S) + 1
                    raise StorageError(
                        f"cannot read {self._path}: the store failed {tries} times: {error}"
                    ) from error
                time.sleep(wait)
        raise AssertionError  # the last try returns or raises

    def _read_ahead(self, chunk: ColumnChunk, wanted: int) -> bytes | bytearray:
        """Read here, all that is wanted; of small pages, many with one request."""
        first, ahead = chunk.ahead
        place = self._position - first
        known = ahead[place : place + wanted] if 0 <= place < len(ahead) else b""
        if len(known) == wanted:
            return known
        rest, position = wanted - len(known), self._position + len(known)
        if rest < _AHEAD_BYTES:
            ahead = self._read_at(min(_AHEAD_BYTES, chunk.end - position), position)
            chunk.ahead = (position, ahead)
            return known + ahead[:rest]
        chunk.ahead = (0, b"")
        data = bytearray(wanted)  # a large page is not copied once more
        data[: len(known)] = known
        behind = memoryview(data)[len(known) :]
        size = len(known) + self._patiently(lambda: self._read_into(behind, position))
        behind.release()
        del data[size:]
        return data

    def _pass_header(self, chunk: ColumnChunk) -> None:
        """Check the page that begins here, and note where the next one will."""
        first, ahead = chunk.ahead
        place, size = chunk.next_header, _AHEAD_BYTES
        head = ahead[place - first :] if first <= place else b""
        while True:
            try:
                page = read_page_header(head)
                break
            except IndexError:  # the header goes on behind what was read
                if len(head) >= min(_HEADER_BYTES, chunk.end - place):
                    raise chunk.damaged() from None
                head = self._read_at(min(size, chunk.end - place), place)
                chunk.ahead = (place, head)
                size = _HEADER_BYTES
            except ValueError:
                raise chunk.damaged() from None
        chunk.admit(page, self._limits)
        if page.has_deltas:
            chunk.check_deltas(page, self._page_body(chunk, page))
        chunk.next_header = place + page.length + page.packed

    def _page_body(self, chunk: ColumnChunk, page: PageHeader) -> bytes:
        place = chunk.next_header + page.length
        first, ahead = chunk.ahead
        packed = ahead[place - first : place - first + page.packed] if first <= place else b""
        if len(packed) < page.packed:
            packed = self._read_at(page.packed, place)
            chunk.ahead = (place, packed)
        return packed
