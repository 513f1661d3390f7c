"""What the pages of a column may take in memory, decided from their headers.

A page's header says how large the page is once unpacked, and pyarrow believes it: 4 kB of file may ask for
gigabytes. Metadata in the footer decides nothing here, for it may lie as well.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ovss_core.errors import ImageError
from pipelines.sources.parquet_footer import Leaf
from pipelines.sources.parquet_headers import PageHeader, delta_counts

_UNSUSPECTED_BYTES = 1 << 26
_PAGE_BYTES = 1 << 30
_MOST_UNPACKING = 200
_LIST_VALUES = 1 << 26


class LargePageError(Exception):
    """A page too large for reading so many rows at once: each may be as large as the page.

    Attributes:
        size: Bytes of the page, unpacked.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"a page of {size:,} bytes")
        self.size = size


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
class ColumnChunk:
    """The pages of one column in one row group, in their order.

    Attributes:
        start: Where the first page begins.
        next_header: Where the next page begins.
        values: Values of all pages, as the footer claims.
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

    def admit(self, page: PageHeader, limits: PageLimits) -> None:
        """Check the page whose header is next.

        Raises:
            ImageError: The page is damaged, or takes too much.
            LargePageError: See `PageLimits.together`.
        """
        self._check_counts(page)
        self._check_size(page, limits)
        self._check_pile(page, limits)

    def _check_counts(self, page: PageHeader) -> None:
        end = self.next_header + page.length + page.packed
        # a dictionary may hold values that no row of this group has; each takes a byte at least, a string four
        most = page.unpacked // (4 if self.is_text else 1) if page.is_dictionary else self.values
        if min(page.unpacked, page.packed) < 0 or end > self.end or page.values > most:
            raise self.damaged()

    def _check_size(self, page: PageHeader, limits: PageLimits) -> None:
        if limits.together is not None and page.unpacked > limits.together:
            raise LargePageError(page.unpacked)
        if page.unpacked <= _UNSUSPECTED_BYTES:
            return
        what = f"a page of column {self.name!r} unpacks to {page.unpacked:,} bytes"
        if page.unpacked > _MOST_UNPACKING * page.packed:
            raise ImageError(
                f"{what} from {page.packed:,}, more than {_MOST_UNPACKING} times as much; it is taken for a bomb: "
                "write such images as PNG, or with smaller row groups"
            )
        if not self.is_list and page.unpacked > page.values * (limits.max_value + 16):
            raise ImageError(
                f"{what} for {page.values:,} values: values of more than max_bytes ({limits.max_value:,})"
            )
        if page.unpacked > limits.page_bytes:
            raise ImageError(
                f"{what}, more than the {limits.page_bytes:,} that a page may take; write the file with smaller "
                "row groups, such as row_group_size=100"
            )

    def _check_pile(self, page: PageHeader, limits: PageLimits) -> None:
        if self.is_list and not page.is_dictionary:
            if page.values > _LIST_VALUES or self.held > limits.max_value:
                raise ImageError(
                    f"column {self.name!r} holds lists of more than max_bytes ({limits.max_value:,}) or pages of more "
                    f"than {_LIST_VALUES:,} elements; store images as binary"
                )
            self.held += page.values
        elif self.piles_up:
            self.held += page.unpacked
            if self.held > max(limits.page_bytes, page.unpacked):
                raise ImageError(
                    f"column {self.name!r} is read as a dictionary and takes more than {limits.page_bytes:,} bytes at "
                    "once; store it as plain binary"
                )

    def check_deltas(self, page: PageHeader, packed: bytes) -> None:
        """Check the counts inside a delta-encoded page: decoders take memory for as many numbers as it claims.

        Args:
            packed: The page as it lies in the file.

        Raises:
            ImageError: The page is damaged.
        """
        levels = page.level_bytes or 0
        try:
            body = packed
            if page.is_packed and self.codec is not None:
                size = page.unpacked - levels
                body = packed[:levels] + self.codec.decompress(packed[levels:], size, asbytes=True)
            sound = not page.has_bit_packed_levels and all(
                count <= page.values for count in delta_counts(page, body, self.level_kinds)
            )
        except (IndexError, ValueError, OSError, pa.ArrowException):
            sound = False
        if not sound:
            raise self.damaged()

    def damaged(self) -> ImageError:
        """Return the error for a page that is none, or not the one that its header describes."""
        return ImageError(
            f"the file is damaged: no page of column {self.name!r} at byte {self.next_header:,}"
        )


def column_chunks(leaves: Iterable[Leaf], schema: pq.ParquetSchema, piles_up: bool) -> Iterator[ColumnChunk]:
    """Yield the pages of columns of a row group.

    Args:
        piles_up: Set for columns that are read as dictionaries.
    """
    for leaf in leaves:
        column = schema.column(leaf.index)
        levels = (column.max_repetition_level > 0, column.max_definition_level > 0)
        yield ColumnChunk(
            leaf.name,
            leaf.start,
            leaf.start,
            leaf.start + leaf.packed,
            leaf.values,
            is_list=levels[0],
            is_text=column.physical_type == "BYTE_ARRAY",
            codec=pa.Codec(leaf.codec) if leaf.codec else None,
            level_kinds=sum(levels),
            piles_up=piles_up,
        )
