"""Files with holes in a tar: the maps that GNU tar writes in four ways, and the file put together again."""

from collections.abc import Callable, Sequence

from pipelines.sources.tar_bytes import BLOCK, ShardBytes

SparseMap = tuple[tuple[int, int], ...]
"""(position in the file, length) of each stored piece, in order."""

_MOST_NUMBERS = 1 << 17
_MOST_MAP_BYTES = 1 << 22


class SparseMapError(ValueError):
    """A map that makes no sense, or is longer than the map of a picture can be."""


def old_sparse_map(block: bytes, source: ShardBytes, number: Callable[[bytes], int | None]) -> SparseMap:
    """Read the map of an old GNU member from its header and the blocks behind it.

    All the blocks are read even if the map is faulty, so that the data behind them is found.

    Args:
        number: Decodes a number of a header.

    Raises:
        SparseMapError: The map is faulty.
    """
    numbers = _old_numbers(block[386:482], number)
    more = block[482]
    while more and len(block := source.read(BLOCK)) == BLOCK:
        if len(numbers) <= _MOST_NUMBERS:
            numbers += _old_numbers(block[:504], number)
        more = block[504]
    return _pairs(numbers)


def _old_numbers(data: bytes, number: Callable[[bytes], int | None]) -> list[int | None]:
    fields = (data[start : start + 12] for start in range(0, len(data), 12))
    return [number(text) for text in fields if text[0]]  # an entry that is not used is all zeros


def pax_sparse_map(records: Sequence[tuple[str, str]]) -> SparseMap:
    """Read the map of a member in pax format 0.0 or 0.1 from its records ``GNU.sparse.*``.

    Raises:
        SparseMapError: The map is faulty.
    """
    numbers: list[str] = []
    for key, value in records:
        if key == "GNU.sparse.map":
            numbers = value.split(",") if value else []
        elif key in ("GNU.sparse.offset", "GNU.sparse.numbytes"):
            numbers.append(value)
    return _pairs([natural(text) for text in numbers])


def sparse_map_in_data(source: ShardBytes, stored: int) -> SparseMap:
    """Read the map of a member in pax format 1.0: it stands before the data and fills whole blocks.

    Raises:
        SparseMapError: The map is faulty.
    """
    blocks: list[bytes] = []
    lines, wanted = 0, 1
    while lines < wanted:
        block = source.read(BLOCK)
        blocks.append(block)
        if len(block) < BLOCK or len(blocks) * BLOCK > min(_MOST_MAP_BYTES, stored):
            raise SparseMapError
        lines += block.count(b"\n")
        if wanted == 1 and lines:
            wanted += 2 * (natural(_lines(blocks)[0]) or 0)
    return _pairs([natural(line) for line in _lines(blocks)[1:wanted]])


def expand(data: bytes, sparse: SparseMap, size: int) -> bytes:
    """Put the stored pieces of a file where they belong; the holes are zeros."""
    whole = bytearray(size)
    start = 0
    for position, length in sparse:
        whole[position : position + length] = data[start : start + length]
        start += length
    return bytes(whole)


def fits(sparse: SparseMap, stored: int, size: int) -> bool:
    """Say whether a map's pieces follow one another within the file and make up the stored bytes."""
    end = 0
    for position, length in sparse:
        if position < end or length < 0:
            return False
        end = position + length
    return end <= size and sum(length for _, length in sparse) == stored


def _lines(blocks: Sequence[bytes]) -> list[str]:
    return b"".join(blocks).decode("latin-1").split("\n")


def natural(text: str) -> int | None:
    """Decode a natural number of at most 19 digits; None where it is none."""
    return int(text) if len(text) < 20 and text.isascii() and text.isdigit() else None


def _pairs(numbers: Sequence[int | None]) -> SparseMap:
    if len(numbers) % 2 or len(numbers) > _MOST_NUMBERS:
        raise SparseMapError
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        raise SparseMapError
    return tuple(zip(known[::2], known[1::2], strict=True))
