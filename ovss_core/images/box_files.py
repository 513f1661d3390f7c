"""Sizes in the streams of box files (ISO base media: AVIF) and of JPEG XL, read before they are decoded."""

import struct
from collections.abc import Iterator

_MAX_BOXES = 10_000
_MAX_UNITS = 1_000
_SEQUENCE_HEADER = 1
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_BROKEN = (IndexError, ValueError, struct.error, OverflowError)

Box = tuple[bytes, int, int]
Size = tuple[int, int]


def box_brands(data: bytes) -> set[bytes]:
    """Return the major and the compatible brands of a file that begins with a box ``ftyp``."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 1024)
    return {data[8:12], *(data[place : place + 4] for place in range(16, end - 3, 4))}


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """Yield type, start and end of the content of the boxes that lie side by side in ``data[start:end]``."""
    for kind, first, last in _boxes_as_told(data, start, end):
        yield kind, first, min(last, end)


def missing_box_bytes(data: bytes) -> int:
    """Return how far the last box of a file reaches beyond its end."""
    return max((last - len(data) for _, _, last in _boxes_as_told(data, 0, len(data))), default=0)


def _boxes_as_told(data: bytes, start: int, end: int) -> Iterator[Box]:
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        size, kind, header = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], 8
        if size == 1:
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = start + size if size else end
        if stop < start + header:
            return
        yield kind, start + header, stop
        start = stop


def av1_frame_sizes(data: bytes) -> Iterator[Size]:
    """Yield width and height of every AV1 sequence in an AVIF file; what cannot be read is passed over."""
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"meta":
            yield from _item_sizes(data, start + 4, end)
        elif kind == b"moov":
            for place in _sample_places(data, start, end):
                yield from _sequence_sizes(data[place : place + 4096])


def _item_sizes(data: bytes, start: int, end: int) -> Iterator[Size]:
    parts = {kind: (first, last) for kind, first, last in boxes(data, start, end)}
    if b"iloc" not in parts:
        return
    inside = parts.get(b"idat", (0, 0))[0]
    try:
        for item in _item_extents(data, *parts[b"iloc"]):
            stream = b"".join(
                data[offset + inside * within : offset + inside * within + length]
                for within, offset, length in item
            )
            yield from _sequence_sizes(stream)
    except _BROKEN:
        return


def _item_extents(data: bytes, place: int, end: int) -> Iterator[list[tuple[bool, int, int]]]:
    """Yield for each item of a box ``iloc`` its extents: whether it counts from ``idat``, offset, length."""
    version = data[place]
    widths = (data[place + 4] >> 4, data[place + 4] & 15, data[place + 5] >> 4, data[place + 5] & 15)
    place += 6

    def number(width: int) -> int:
        nonlocal place
        if place + width > end:
            raise ValueError("the box ends early")
        value = int.from_bytes(data[place : place + width], "big")
        place += width
        return value

    for _ in range(min(number(2 if version < 2 else 4), _MAX_BOXES)):
        number(2 if version < 2 else 4)
        within = bool(version) and number(2) & 15 == 1
        number(2)
        base = number(widths[2])
        extents = []
        for _ in range(number(2)):
            number(widths[3] if version else 0)
            offset, length = base + number(widths[0]), number(widths[1])
            extents.append((within, offset, length or len(data)))
        yield extents


def _sample_places(data: bytes, start: int, end: int) -> Iterator[int]:
    """Yield where the first chunk of each track lies."""
    for kind, first, last in boxes(data, start, end):
        if kind in (b"trak", b"mdia", b"minf", b"stbl"):
            yield from _sample_places(data, first, last)
        elif kind in (b"stco", b"co64"):
            yield int.from_bytes(data[first + 8 : first + (12 if kind == b"stco" else 16)], "big")


def _sequence_sizes(stream: bytes) -> Iterator[Size]:
    """Walk the units of an AV1 stream; yield the size that each sequence header announces."""
    place = 0
    try:
        for _ in range(_MAX_UNITS):
            if place >= len(stream):
                return
            header = stream[place]
            if header & 0x80:  # the forbidden bit: no AV1
                return
            place += 2 if header & 4 else 1
            size, place = _leb128(stream, place) if header & 2 else (len(stream) - place, place)
            if header >> 3 & 15 == _SEQUENCE_HEADER:
                yield _sequence_size(_Bits(stream[place : place + size], "big"))
            place += size
    except _BROKEN:
        return


def _leb128(stream: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 56, 7):
        byte = stream[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, place


class _Bits:
    """Reads numbers bit by bit, from the high end of each byte ("big") or the low one ("little")."""

    def __init__(self, data: bytes, order: str) -> None:
        digits = [f"{byte:08b}" for byte in data[:256]]
        self._digits = "".join(digits if order == "big" else (digit[::-1] for digit in digits))
        self._high_first = order == "big"
        self._place = 0

    def __call__(self, width: int) -> int:
        piece = self._digits[self._place : self._place + width]
        if len(piece) < width:
            raise ValueError("the stream ends early")
        self._place += width
        return int(piece if self._high_first else piece[::-1], 2) if width else 0


def _sequence_size(bits: _Bits) -> Size:
    """Read the largest frame of an AV1 sequence header (AV1 specification, 5.5.1)."""
    bits(4)
    if bits(1):
        bits(5)
    else:
        _skip_operating_points(bits)
    widths = bits(4) + 1, bits(4) + 1
    return bits(widths[0]) + 1, bits(widths[1]) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_width = 0
    if bits(1):  # timing information
        bits(64)
        if bits(1):
            zeros = 0
            while not bits(1):
                zeros += 1
            bits(zeros)
        if bits(1):  # decoder model
            delay_width = bits(5) + 1
            bits(42)
    display_delay = bits(1)
    for _ in range(bits(5) + 1):
        bits(12)
        if bits(5) > 7:
            bits(1)
        if delay_width and bits(1):
            bits(2 * delay_width + 1)
        if display_delay and bits(1):
            bits(4)


def jpeg_xl_size(data: bytes) -> Size | None:
    """Return width and height of a JPEG XL image, bare or in boxes; None if its header cannot be read."""
    start = 0
    if not data.startswith(b"\xff\x0a"):
        parts = (place for place in boxes(data, 0, len(data)) if place[0] in (b"jxlc", b"jxlp"))
        kind, start, _ = next(parts, (b"", len(data), 0))
        start += 4 if kind == b"jxlp" else 0  # the part's number
    stream = data[start : start + 64]
    if not stream.startswith(b"\xff\x0a"):
        return None
    try:
        return _jpeg_xl_header(_Bits(stream[2:], "little"))
    except _BROKEN:
        return None


def _jpeg_xl_header(bits: _Bits) -> Size:
    """Read a SizeHeader (ISO/IEC 18181-1, D.2)."""
    small = bits(1)

    def side() -> int:
        return 8 * (bits(5) + 1) if small else bits((9, 13, 18, 30)[bits(2)]) + 1

    height = side()
    ratio = bits(3)
    if ratio:
        over, under = _RATIOS[ratio]
        return height * over // under, height
    return side(), height
