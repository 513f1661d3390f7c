"""Thrift's compact protocol, in which Parquet writes its footer and its page headers.

pyarrow reads the same bytes. Of a field that is given twice, or in another type than the format has, both must
believe the same: a value counts by field and type, and the last one wins.
"""

from typing import Any

TRUE, FALSE, I32, I64, LIST, STRUCT = 1, 2, 5, 6, 9, 12
_I8, _I16, _DOUBLE, _BINARY, _SET, _MAP, _UUID = 3, 4, 7, 8, 10, 11, 13
_DEEPEST = 24

Fields = dict[tuple[int, int], Any]
"""Values by field number and type: integers, booleans (True under `TRUE` and `FALSE` alike), bytes, lists, structs."""


def read_struct(data: bytes, place: int = 0, depth: int = 0) -> tuple[Fields, int]:
    """Read a struct.

    Returns:
        Its fields (sets are lists, of maps there are none), and the place behind it.

    Raises:
        IndexError: The struct goes on behind the end of the data.
        ValueError: This is no struct.
    """
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    fields: Fields = {}
    number = 0
    while (head := data[place]) != 0:
        place += 1
        kind = head & 0x0F
        if head >> 4:
            number += head >> 4
        else:
            number, place = _read_integer(data, place)
        if kind in (TRUE, FALSE):
            fields[number, TRUE] = fields[number, FALSE] = kind == TRUE
        elif kind == STRUCT:
            value, place = read_struct(data, place, depth + 1)
            fields.setdefault((number, STRUCT), {}).update(value)
        else:
            fields[number, kind], place = _read_value(data, place, kind, depth)
    return fields, place + 1


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Read an unsigned integer; returns it and the place behind it.

    Raises:
        IndexError: It goes on behind the end of the data.
        ValueError: It has more than 64 bits.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("an integer of more than 64 bits")


def _read_value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I16, I32, I64):
        return _read_integer(data, place)
    if kind == _BINARY:
        length, place = read_varint(data, place)
        return data[place : place + length], place + length
    if kind in (LIST, _SET):
        return _read_list(data, place, depth)
    if kind == STRUCT:
        return read_struct(data, place, depth + 1)
    if kind in (TRUE, FALSE, _I8):  # as elements of a list; as fields, booleans have no byte of their own
        return data[place], place + 1
    if kind in (_DOUBLE, _UUID):
        return None, place + (8 if kind == _DOUBLE else 16)
    raise ValueError(f"no field of type {kind} stands in Parquet's structs")  # maps among them


def _read_list(data: bytes, place: int, depth: int) -> tuple[list[Any], int]:
    head, place = data[place], place + 1
    size, kind = head >> 4, head & 0x0F
    if size == 15:
        size, place = read_varint(data, place)
    values = []
    for _ in range(size):
        if place >= len(data):
            raise IndexError("the list goes on behind the end")
        value, place = _read_value(data, place, kind, depth)
        values.append(value)
    return values, place


def _read_integer(data: bytes, place: int) -> tuple[int, int]:
    value, place = read_varint(data, place)
    return (value >> 1) ^ -(value & 1), place
