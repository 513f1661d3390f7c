"""Random damage to the bytes of a file; the same seed does the same damage."""

import random
from collections.abc import Callable

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
_TOKENS = (
    *(
        b"\0",
        b"\n",
        b"../",
        b"NaN",
        b"-1",
        b"99999999999",
        b"{",
        b"]",
        b"\xff\xfe",
        b"\\u0000",
        b"\\ud800",
        b"\xed\xa0\x80",
    ),
    *(
        "²".encode(),
        b"!!int ",
        b"&a ",
        b"*a",
        b"null",
        b"1e999",
        b"9" * 5000,
        b"[" * 5000,
        b'{"":' * 5000,
        b"- " * 1000,
    ),
)
_CHANGES_A_FILE = (1, 1, 1, 2, 2, 3, 4, 8)


def mutate(data: bytes, other: bytes, seed: int) -> bytes:
    """Damage a file in one to eight places.

    Args:
        data: A sound file.
        other: Another file of the same kind; pieces of it are spliced in.
        seed: Decides everything.
    """
    chance = random.Random(seed)
    for _ in range(chance.choice(_CHANGES_A_FILE)):
        if not data:
            break
        data = chance.choice(_CHANGES)(data, other, chance)
    return data


def _place(data: bytes, chance: random.Random) -> int:
    """Headers decide more than contents: half of the changes fall into the first 512 bytes."""
    end = min(len(data), 512) if chance.random() < 0.5 else len(data)
    return chance.randrange(end)


def _flip(data: bytes, other: bytes, chance: random.Random) -> bytes:
    place = _place(data, chance)
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


def _set(data: bytes, other: bytes, chance: random.Random) -> bytes:
    place = _place(data, chance)
    return data[:place] + bytes([chance.choice(_INTERESTING)]) + data[place + 1 :]


def _number(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Overwrite 2, 4 or 8 bytes by a small, a huge or a negative number in either byte order."""
    size = chance.choice((2, 4, 8))
    value = chance.choice(
        (0, 1, 255, 2 ** (8 * size - 1) - 1, 2 ** (8 * size) - 1, chance.getrandbits(8 * size))
    )
    place = _place(data, chance)
    changed = data[:place] + value.to_bytes(size, chance.choice(("little", "big"))) + data[place + size :]
    return changed[: max(len(data), place + size)]


def _cut(data: bytes, other: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _remove(data: bytes, other: bytes, chance: random.Random) -> bytes:
    place, length = _place(data, chance), chance.choice((1, 7, 64, 512, 4096))
    return data[:place] + data[place + length :]


def _repeat(data: bytes, other: bytes, chance: random.Random) -> bytes:
    place, length = _place(data, chance), chance.choice((1, 16, 512, 4096))
    return data[:place] + data[place : place + length] * chance.choice((2, 3, 16)) + data[place + length :]


def _zero(data: bytes, other: bytes, chance: random.Random) -> bytes:
    place, length = _place(data, chance), chance.choice((1, 16, 512, 4096))
    return data[:place] + bytes(len(data[place : place + length])) + data[place + length :]


def _splice(data: bytes, other: bytes, chance: random.Random) -> bytes:
    if not other:
        return data
    place, start = _place(data, chance), chance.randrange(len(other))
    return data[:place] + other[start : start + chance.choice((4, 64, 512, 4096))] + data[place:]


def _text(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Put a token in that means something to some parser."""
    token = chance.choice(_TOKENS)
    place = _place(data, chance)
    return data[:place] + token + data[place:]


_CHANGES: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _set, _number, _number, _cut, _remove, _repeat, _zero, _splice, _text),
)
