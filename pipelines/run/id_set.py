"""Millions of image ids in little memory: 12 bytes each, however long they are.

That two of a hundred million ids share these bits happens once in 10^13 corpora.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import compress, islice
from typing import NamedTuple

import numpy as np

from pipelines.run.manifest_files import digest
from pipelines.sources.record import ImageRecord

_TOGETHER = 131072
"""Records that are looked up at once: every share is asked each time, so that few would cost a hundred million three times that."""
_SHARES = 64
_BORDERS = np.arange(1, _SHARES, dtype=np.uint64) << np.uint64(58)
_EMPTY = np.empty(0, "S16")


class _Sorted(NamedTuple):
    """Digests, sorted by their first half.

    Attributes:
        first: First 8 bytes of each, uint64.
        second: The next 4 bytes, uint32.
    """

    first: np.ndarray
    second: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def copied(self) -> "_Sorted":
        return _Sorted(self.first.copy(), self.second.copy())

    def merged(self, other: "_Sorted") -> "_Sorted":
        first = np.concatenate([self.first, other.first])
        order = np.argsort(first, kind="stable")
        return _Sorted(first[order], np.concatenate([self.second, other.second])[order])

    def holds(self, asked: "_Sorted") -> np.ndarray:
        places = np.minimum(np.searchsorted(self.first, asked.first), len(self) - 1)
        alike = self.first[places] == asked.first
        found: np.ndarray = alike & (self.second[places] == asked.second)
        for place in np.flatnonzero(alike & ~found):  # one first half for two digests: hardly ever
            last = np.searchsorted(self.first, asked.first[place], side="right")
            found[place] = bool((self.second[places[place] : last] == asked.second[place]).any())
        return found


class IdSet:
    """Ids as digests in two pieces, sorted by the first: in shares by their first bits, each of which is a few arrays
    where one is at least twice as long as the next. So what is merged at a time is a share of what there is.
    """

    def __init__(self) -> None:
        self._shares: list[list[_Sorted]] = [[] for _ in range(_SHARES)]

    def add(self, digests: np.ndarray) -> None:
        """Add digests, ``S16``."""
        for runs, new in zip(self._shares, _shared(digests)[0], strict=True):
            if len(new):
                runs.append(new.copied())
            while len(runs) > 1 and len(runs[-2]) < 2 * len(runs[-1]):
                last = runs.pop()
                runs[-1] = runs[-1].merged(last)

    def holds(self, digests: np.ndarray) -> np.ndarray:
        """Return which digests are there, bool."""
        shares, order = _shared(digests)
        held = [
            np.logical_or.reduce([run.holds(asked) for run in runs])
            if runs and len(asked)
            else np.zeros(len(asked), bool)
            for runs, asked in zip(self._shares, shares, strict=True)
        ]
        found = np.empty(len(digests), bool)
        found[order] = np.concatenate(held)
        return found

    def __contains__(self, image_id: str) -> bool:
        return bool(self.holds(digests_of([image_id]))[0])


def _shared(digests: np.ndarray) -> tuple[list[_Sorted], np.ndarray]:
    """Sort digests, and cut them by their first bits; also returns where each of them was."""
    halves = np.ascontiguousarray(digests).view(">u8").reshape(-1, 2).astype(np.uint64)
    order = np.argsort(halves[:, 0])
    first, second = halves[order, 0], (halves[order, 1] >> np.uint64(32)).astype(np.uint32)
    ends = np.searchsorted(first, _BORDERS)
    return [_Sorted(*pair) for pair in zip(np.split(first, ends), np.split(second, ends), strict=True)], order


def digests_of(ids: Sequence[str]) -> np.ndarray:
    """Return the digests of ids, ``S16`` padded to 16 bytes."""
    return np.array([digest(image_id) for image_id in ids], "S16") if ids else _EMPTY


class Listed(NamedTuple):
    """Records in the order in which they were listed, and the digests of their ids, ``S16``."""

    records: Sequence[ImageRecord]
    digests: np.ndarray

    def where(self, wanted: np.ndarray) -> "Listed":
        """Return those that are wanted, bool."""
        return Listed(list(compress(self.records, wanted)), self.digests[wanted])


def distinct(records: Iterable[ImageRecord], seen: IdSet) -> Iterator[Listed]:
    """Yield records in which no id comes twice, nor one of `seen`; a repeated id gets ``#2``, ``#3``, ..."""
    remaining = iter(records)
    while rows := list(islice(remaining, _TOGETHER)):
        ids = [row.image_id for row in rows]
        digests = digests_of(ids)
        repeated = seen.holds(digests)
        if repeated.any() or len(set(ids)) < len(ids):
            rows = _renamed(rows, repeated, seen)
            digests = digests_of([row.image_id for row in rows])
        seen.add(digests)
        yield Listed(rows, digests)


def in_parts(listed: Iterable[Listed], size: int) -> Iterator[Listed]:
    """Yield records by so many, the last ones by fewer."""
    rows: list[ImageRecord] = []
    digests = _EMPTY
    for some in listed:
        rows.extend(some.records)
        digests = np.concatenate([digests, some.digests])
        whole = len(rows) - len(rows) % size
        for start in range(0, whole, size):
            yield Listed(rows[start : start + size], digests[start : start + size])
        rows, digests = rows[whole:], digests[whole:]
    if rows:
        yield Listed(rows, digests)


def _renamed(rows: Sequence[ImageRecord], repeated: np.ndarray, seen: IdSet) -> list[ImageRecord]:
    own: set[str] = set()
    result = []
    for row, known in zip(rows, repeated, strict=True):
        image_id, number = row.image_id, 1
        while image_id in own or (known if number == 1 else image_id in seen):
            number += 1
            image_id = f"{row.image_id}#{number}"
        own.add(image_id)
        result.append(row if number == 1 else replace(row, image_id=image_id))
    return result
