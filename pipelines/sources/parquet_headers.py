"""Page headers of Parquet, and the few numbers inside a page that decide how much memory its decoder takes.

Format: https://parquet.apache.org/docs/file-format/ (Thrift's compact protocol; "Encodings" for delta lengths).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_BOOLEANS, _INTEGERS, _WIDTHS = (1, 2), (4, 5, 6), {3: 1, 7: 8}
_BINARY, _STRUCT = 8, 12
_DEEPEST = 16
_DICTIONARY_PAGE = 2
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
    fields, length = _read_struct(data, 0)
    first, dictionary, second = fields.get(5), fields.get(7), fields.get(8)
    told = first or dictionary or second or {}
    if not isinstance(told, dict):
        raise ValueError("no page header")  # noqa: TRY004 (a fault of the data)
    levels = _number(told, 5) + _number(told, 6) if second else None
    return PageHeader(
        length=length,
        unpacked=_number(fields, 2, -1),
        packed=_number(fields, 3, -1),
        values=_number(told, 1),
        encoding=_number(told, 4 if second else 2),
        is_dictionary=fields.get(1) == _DICTIONARY_PAGE,
        level_bytes=levels,
        is_packed=told.get(7) is not False if second else True,
        has_bit_packed_levels=bool(first) and _BIT_PACKED in (told.get(3), told.get(4)),
    )


def _number(fields: dict[int, Any], field: int, default: int = 0) -> int:
    value = fields.get(field, default)
    if not isinstance(value, int) or (value < 0 and field in fields):
        raise ValueError(f"field {field} is {value!r}")
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
    block, place = _read_varint(data, place)
    parts, place = _read_varint(data, place)
    count, place = _read_varint(data, place)
    _, place = _read_varint(data, place)
    if not 0 < parts <= block <= _LARGEST_BLOCK:
        raise ValueError(f"blocks of {block:,} numbers in {parts:,} parts")
    left = count - 1
    while left > 0 and place < len(data):
        _, place = _read_varint(data, place)
        widths = data[place : place + parts]
        place += parts
        for width in widths:
            if left > 0:
                place += width * (block // parts) // 8
                left -= block // parts
    return count, place


def _read_struct(data: bytes, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Read a struct of Thrift's compact protocol.

    Returns:
        Integers, booleans and structs by field number (other fields are passed over), and the place behind.

    Raises:
        IndexError: The struct goes on behind the end of the data.
        ValueError: This is no such struct.
    """
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    fields: dict[int, Any] = {}
    number = 0
    while (head := data[place]) != 0:
        place += 1
        kind = head & 0x0F
        if head >> 4:
            number += head >> 4
        else:
            number, place = _read_integer(data, place)
        if kind in _BOOLEANS:
            fields[number] = kind == 1
        elif kind in _INTEGERS:
            fields[number], place = _read_integer(data, place)
        elif kind == _STRUCT:
            fields[number], place = _read_struct(data, place, depth + 1)
        else:
            place = _pass_value(data, place, kind)
    return fields, place + 1


def _pass_value(data: bytes, place: int, kind: int) -> int:
    if kind in _WIDTHS:
        return place + _WIDTHS[kind]
    if kind == _BINARY:
        length, place = _read_varint(data, place)
        return place + length
    raise ValueError(f"no page header holds a field of type {kind}")


def _read_integer(data: bytes, place: int) -> tuple[int, int]:
    value, place = _read_varint(data, place)
    return (value >> 1) ^ -(value & 1), place


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("an integer of more than 64 bits")
