"""Page headers of Parquet, and the few numbers inside a page that decide how much memory its decoder takes.

Format: https://parquet.apache.org/docs/file-format/ ("Data Pages", and "Encodings" for delta lengths).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.sources.parquet_thrift import I32, STRUCT, TRUE, Fields, read_struct, read_varint

_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_2 = 0, 2, 3
_HEADERS = {_DATA_PAGE: 5, _DICTIONARY_PAGE: 7, _DATA_PAGE_2: 8}
_DELTA_INTEGERS, _DELTA_LENGTHS, _DELTA_STRINGS = 5, 6, 7
_BIT_PACKED = 4
_LARGEST_BLOCK = 1 << 20


@dataclass(frozen=True)
class PageHeader:
    """What a page says of itself.

    Attributes:
        length: Bytes of the header.
        unpacked: Bytes of the page when it is unpacked.
        packed: Bytes of the page in the file.
        values: Its values, nulls included; entries, for a dictionary.
        level_bytes: Bytes before the values that are never packed (pages of version 2); None for version 1, whose
            levels carry their own lengths.
        is_packed: Whether the bytes behind the levels are packed at all.
    """

    length: int
    unpacked: int
    packed: int
    values: int
    encoding: int
    is_dictionary: bool
    level_bytes: int | None
    is_packed: bool
    has_bit_packed_levels: bool

    @property
    def has_deltas(self) -> bool:
        """Whether decoding begins with delta-encoded numbers, whose own counts decide about memory."""
        return self.encoding in (_DELTA_INTEGERS, _DELTA_LENGTHS, _DELTA_STRINGS)


def read_page_header(data: bytes) -> PageHeader:
    """Read the header of a page.

    Raises:
        IndexError: It goes on behind the end of the data.
        ValueError: This is no page header.
    """
    fields, length = read_struct(data)
    kind = fields.get((1, I32), 0)
    second = kind == _DATA_PAGE_2
    told: Fields = fields.get((_HEADERS.get(kind, 0), STRUCT), {})
    return PageHeader(
        length=length,
        unpacked=_number(fields, 2),
        packed=_number(fields, 3),
        values=_number(told, 1),
        encoding=_number(told, 4 if second else 2),
        is_dictionary=kind == _DICTIONARY_PAGE,
        level_bytes=_number(told, 5) + _number(told, 6) if second else None,
        is_packed=told.get((7, TRUE), True) if second else True,
        has_bit_packed_levels=kind == _DATA_PAGE and _BIT_PACKED in (_number(told, 3), _number(told, 4)),
    )


def _number(fields: Fields, field: int) -> int:
    value: int = fields.get((field, I32), 0)
    if value < 0:
        raise ValueError(f"field {field} is {value}")
    return value


def delta_counts(page: PageHeader, body: bytes, level_kinds: int) -> Iterator[int]:
    """Yield how many numbers each delta-encoded run of a page claims to hold.

    Args:
        body: The unpacked page, with levels.
        level_kinds: Kinds of levels in pages of version 1: repetition, definition, both or none.

    Raises:
        IndexError, ValueError: The page is damaged.
    """
    place = page.level_bytes or 0
    if page.level_bytes is None:
        for _ in range(level_kinds):
            place += 4 + int.from_bytes(body[place : place + 4], "little")
    count, place = _pass_deltas(body, place)
    yield count
    if page.encoding == _DELTA_STRINGS and count <= page.values:
        yield _pass_deltas(body, place)[0]


def _pass_deltas(data: bytes, place: int) -> tuple[int, int]:
    """Return how many numbers a delta-encoded run holds, and the place behind it."""
    block, place = read_varint(data, place)
    parts, place = read_varint(data, place)
    count, place = read_varint(data, place)
    _, place = read_varint(data, place)
    if not 0 < parts <= block <= _LARGEST_BLOCK:
        raise ValueError(f"blocks of {block:,} numbers in {parts:,} parts")
    left = count - 1
    while left > 0 and place < len(data):
        _, place = read_varint(data, place)
        widths = data[place : place + parts]
        place += parts
        for width in widths:
            if left > 0:
                place += width * (block // parts) // 8
                left -= block // parts
    return count, place
