"""What a Parquet page will take in memory, found out from its header before pyarrow takes that memory.

A page's header says how large the page is once unpacked, and pyarrow believes it: 4 kB of file may ask for
gigabytes. `PageGuard` is the file that pyarrow reads from; it reads every page header on the way, at no cost in
bytes, and refuses a page that asks for too much. Metadata in the footer decides nothing here, for it may lie.
"""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ovss_core.errors import ImageError, StorageError
from pipelines.sources.parquet_headers import PageHeader, delta_counts, read_page_header

_UNSUSPECTED_BYTES = 1 << 26
_PAGE_BYTES = 1 << 30
_MOST_UNPACKING = 200
_LIST_VALUES = 1 << 26
_HEADER_BYTES = 1 << 24
_AHEAD_BYTES = 1 << 22
_WAITS_S = (0.5, 2.0, 8.0)


class LargePageError(Exception):
    """A page too large for reading many rows at once; the rows must be read one by one."""


@dataclass(frozen=True)
class PageLimits:
    """How much a page may ask for.

    Attributes:
        max_value: Bytes of the largest value that anybody wants.
        together: Largest page, unpacked, for reading several rows at once; a larger one raises `LargePageError`.
            None where rows are read one by one.
    """

    max_value: int
    together: int | None = None

    @property
    def page_bytes(self) -> int:
        """Bytes of the largest page, unpacked; pyarrow holds up to four times as much while it reads one."""
        return max(_PAGE_BYTES, 4 * self.max_value)


@dataclass
class _Chunk:
    """The pages of one column in one row group.

    Attributes:
        start: Where the first page begins.
        next_header: Where the next page begins.
        is_list: Its values are elements of lists, many a row.
        is_text: Its values are strings of bytes, each with its length.
        codec: What unpacks its pages; None where they are not packed.
        level_kinds: How many of repetition and definition levels its pages have.
        piles_up: Whether pyarrow keeps what it read until a batch is complete.
        held: What was read since the last batch: elements of lists, or bytes.
        ahead: Bytes of the file that were read but not handed on yet, and where they begin.
    """

    name: str
    start: int
    next_header: int
    end: int
    values: int
    is_list: bool
    is_text: bool
    codec: pa.Codec | None
    level_kinds: int
    piles_up: bool
    held: int = 0
    ahead: tuple[int, bytes] = (0, b"")


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
        self._is_local = isinstance(filesystem, pafs.LocalFileSystem)
        self._file: pa.NativeFile = self._patiently(lambda: filesystem.open_input_file(path))
        self._limits = PageLimits(0)
        self._size: int = self._patiently(self._file.size)
        self._position = 0
        self._chunks: list[_Chunk] = []

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
        self._chunks = [chunk for column in columns for chunk in _chunks(metadata, group, column, piles_up)]
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
                raise _damaged(chunk, self._position)
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
            except (FileNotFoundError, PermissionError):
                raise
            except OSError as error:
                if self._is_local:
                    raise
                if wait is None:
                    raise StorageError(f"the store failed {len(_WAITS_S) + 1} times: {error}") from error
                time.sleep(wait)
        raise AssertionError  # the last try returns or raises

    def _read_ahead(self, chunk: _Chunk, wanted: int) -> bytes | bytearray:
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

    def _pass_header(self, chunk: _Chunk) -> None:
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
                    raise _damaged(chunk, place) from None
                head = self._read_at(min(size, chunk.end - place), place)
                chunk.ahead = (place, head)
                size = _HEADER_BYTES
            except ValueError:
                raise _damaged(chunk, place) from None
        self._check_counts(chunk, page)
        self._check_size(chunk, page)
        self._check_pile(chunk, page)
        if page.has_deltas:
            self._check_deltas(chunk, page)
        chunk.next_header = place + page.length + page.packed

    def _check_counts(self, chunk: _Chunk, page: PageHeader) -> None:
        place = chunk.next_header
        if page.unpacked < 0 or page.packed < 0 or place + page.length + page.packed > chunk.end:
            raise _damaged(chunk, place)
        # a dictionary may hold values that no row of this group has; each takes a byte at least, a string four
        most = page.unpacked // (4 if chunk.is_text else 1) if page.is_dictionary else chunk.values
        if page.values > most:
            raise _damaged(chunk, place)

    def _check_deltas(self, chunk: _Chunk, page: PageHeader) -> None:
        """Check the counts inside a delta-encoded page: decoders take memory for as many numbers as it claims."""
        place = chunk.next_header + page.length
        first, ahead = chunk.ahead
        packed = ahead[place - first : place - first + page.packed] if first <= place else b""
        if len(packed) < page.packed:
            packed = self._read_at(page.packed, place)
            chunk.ahead = (place, packed)
        levels = page.level_bytes or 0
        try:
            body = packed
            if page.is_packed and chunk.codec is not None:
                size = page.unpacked - levels
                body = packed[:levels] + chunk.codec.decompress(packed[levels:], size, asbytes=True)
            sound = not page.has_bit_packed_levels and all(
                count <= page.values for count in delta_counts(page, body, chunk.level_kinds)
            )
        except (IndexError, ValueError, OSError, pa.ArrowException):
            sound = False
        if not sound:
            raise _damaged(chunk, chunk.next_header)

    def _check_size(self, chunk: _Chunk, page: PageHeader) -> None:
        unpacked, packed, values = page.unpacked, page.packed, page.values
        if self._limits.together is not None and unpacked > self._limits.together:
            raise LargePageError
        if unpacked <= _UNSUSPECTED_BYTES:
            return
        what = f"a page of column {chunk.name!r} unpacks to {unpacked:,} bytes"
        if unpacked > _MOST_UNPACKING * packed:
            raise ImageError(
                f"{what} from {packed:,}, more than {_MOST_UNPACKING} times as much; it is taken for a bomb: write "
                "such images as PNG, or with smaller row groups"
            )
        if not chunk.is_list and unpacked > values * (self._limits.max_value + 16):
            raise ImageError(
                f"{what} for {values:,} values: values of more than max_bytes ({self._limits.max_value:,})"
            )
        if unpacked > self._limits.page_bytes:
            raise ImageError(
                f"{what}, more than the {self._limits.page_bytes:,} that a page may take; write the file with "
                "smaller row groups, such as row_group_size=100"
            )

    def _check_pile(self, chunk: _Chunk, page: PageHeader) -> None:
        unpacked, values = page.unpacked, page.values
        if chunk.is_list:
            if not page.is_dictionary and (values > _LIST_VALUES or chunk.held > self._limits.max_value):
                raise ImageError(
                    f"column {chunk.name!r} holds lists of more than max_bytes ({self._limits.max_value:,}) or "
                    f"pages of more than {_LIST_VALUES:,} elements; store images as binary"
                )
            chunk.held += 0 if page.is_dictionary else values
        elif chunk.piles_up:
            chunk.held += unpacked
            if chunk.held > max(self._limits.page_bytes, unpacked):
                raise ImageError(
                    f"column {chunk.name!r} is read as a dictionary and takes more than "
                    f"{self._limits.page_bytes:,} bytes at once; store it as plain binary"
                )


def _chunks(metadata: pq.FileMetaData, group: int, column: str, piles_up: bool) -> Iterator[_Chunk]:
    row_group = metadata.row_group(group)
    for index in range(row_group.num_columns):
        leaf = row_group.column(index)
        if leaf.path_in_schema != column and not leaf.path_in_schema.startswith(f"{column}."):
            continue
        start = leaf.data_page_offset
        if leaf.has_dictionary_page and leaf.dictionary_page_offset is not None:
            start = min(start, leaf.dictionary_page_offset) if leaf.dictionary_page_offset > 0 else start
        schema = metadata.schema.column(index)
        levels = (schema.max_repetition_level > 0, schema.max_definition_level > 0)
        yield _Chunk(
            leaf.path_in_schema,
            start,
            start,
            start + leaf.total_compressed_size,
            leaf.num_values,
            is_list=levels[0],
            is_text=leaf.physical_type == "BYTE_ARRAY",
            codec=_codec(leaf.compression),
            level_kinds=sum(levels),
            piles_up=piles_up,
        )


def _codec(name: str) -> pa.Codec | None:
    name = {"LZ4": "lz4_raw"}.get(name, name.lower())
    return pa.Codec(name) if name != "uncompressed" else None


def _damaged(chunk: _Chunk, place: int) -> ImageError:
    return ImageError(f"the file is damaged: no page of column {chunk.name!r} at byte {place:,}")
