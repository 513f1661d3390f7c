"""The file that pyarrow reads a table from: it looks at every page header on the way, at no cost in bytes.

A page that asks for too much memory is refused before pyarrow has the bytes that would make it take that memory.
"""

import io
from collections.abc import Callable, Iterable
from typing import TypeVar

import pyarrow as pa

from ovss_core.errors import ImageError
from pipelines.sources.parquet_headers import PageHeader, read_page_header
from pipelines.sources.parquet_pages import ColumnChunk, PageLimits
from pipelines.transport.addresses import host_of, local_path
from pipelines.transport.causes import blamed_on
from pipelines.transport.patience import patiently, within
from pipelines.transport.stores import open_storage

_HEADER_BYTES = 1 << 24
_AHEAD_BYTES = 1 << 22
Value = TypeVar("Value")


class PageGuard(io.RawIOBase):
    """A file for pyarrow that refuses pages which would take too much memory.

    Raises (from its reads, through pyarrow's):
        ImageError: A page is damaged, or larger than the limits allow.
        LargePageError: See `PageLimits.together`.
        TransferError: The storage failed; what may pass has been tried again.

    Args:
        root: URI that opens the file system.
        path: The file's path inside it.
        limit_s: Seconds for each read, tries and waits included.
    """

    def __init__(self, root: str, path: str, limit_s: float) -> None:
        super().__init__()
        self._root, self._path, self._limit_s = root, path, limit_s
        scheme = "" if "://" in path or local_path(root) is not None else f"{root.partition('://')[0]}://"
        self._address = f"{scheme}{path}"
        self._is_local = local_path(root) is not None
        self._file: pa.NativeFile | None = None
        self._limits = PageLimits(0)
        self.size: int = self._ask(lambda file: file.size())
        self._position = 0
        self._chunks: list[ColumnChunk] = []
        self._tail: tuple[int, bytes] = (0, b"")

    def watch(self, chunks: Iterable[ColumnChunk], limits: PageLimits) -> None:
        """Watch columns of a row group from here on, instead of those watched before.

        Raises:
            ImageError: The footer puts them where they cannot be.
        """
        self._limits = limits
        kept = {chunk.start: chunk.ahead for chunk in self._chunks}
        self._chunks = list(chunks)
        before = 0
        for chunk in sorted(self._chunks, key=lambda chunk: chunk.start):
            if not before <= chunk.start <= chunk.end <= self.size or chunk.values < 0:
                raise ImageError(
                    f"the file is damaged: its footer puts column {chunk.name!r} outside of the file or into another "
                    "column"
                )
            before = chunk.end
            chunk.ahead = kept.get(chunk.start, chunk.ahead)

    def read_footer(self) -> bytes:
        """Return the footer, which pyarrow has just read."""
        length = int.from_bytes(self._tail_at(self.size - 8, 4), "little")
        return self._tail_at(self.size - 8 - length, length)

    def _tail_at(self, position: int, size: int) -> bytes:
        first, tail = self._tail
        if first <= position and position + size <= first + len(tail):
            return tail[position - first : position - first + size]
        return self._read_at(size, max(0, position))

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
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, size: int | None = -1) -> bytes | bytearray:
        """Read at most to the end of a page, after a look at its header where it begins here."""
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        chunk = next((chunk for chunk in self._chunks if chunk.start <= self._position < chunk.end), None)
        if chunk is None:
            data: bytes | bytearray = self._read_at(wanted, self._position)
            self._tail = (self._position, bytes(data))
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
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()

    def _read_at(self, size: int, position: int) -> bytes:
        data: bytes = self._ask(lambda file: file.read_at(size, position))
        return data

    def _ask(self, call: Callable[[pa.NativeFile], Value]) -> Value:
        """Read from the storage; a file that failed is opened anew, for its connection may be the fault."""

        def read() -> Value:
            file = self._file or open_storage(self._root)[0].open_input_file(self._path)
            self._file = None
            value = call(file)
            self._file = file
            return value

        def attempt(left: float) -> Value:
            with blamed_on(self._address, self._root):
                return read() if self._is_local else within(left, read, f"reading from {host_of(self._root)}")

        return patiently(attempt, self._limit_s)

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
        if not self._is_local:
            return known + self._read_at(rest, position)
        data = bytearray(known).ljust(wanted, b"\0")  # a large page is not copied once more

        def fill(file: pa.NativeFile) -> int:
            file.seek(position)
            with memoryview(data) as view, view[len(known) :] as behind:
                return int(file.readinto(behind))

        del data[len(known) + self._ask(fill) :]
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
