"""Millions of image ids in little memory: 16 bytes each, however long they are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from pipelines.run.manifest_files import digest
from pipelines.sources.record import ImageRecord

_TOGETHER = 4096
_EMPTY = np.empty(0, "S16")


class IdSet:
    """Ids as sorted digests, in a few arrays of which each is at least twice as long as the next."""

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []

    def add(self, digests: np.ndarray) -> None:
        """Add digests, ``S16``."""
        if len(digests):
            self._sorted.append(np.sort(digests))
        while len(self._sorted) > 1 and len(self._sorted[-2]) < 2 * len(self._sorted[-1]):
            last = self._sorted.pop()
            self._sorted[-1] = np.sort(np.concatenate([self._sorted[-1], last]), kind="stable")

    def holds(self, digests: np.ndarray) -> np.ndarray:
        """Return which digests are there, bool."""
        found = np.zeros(len(digests), bool)
        for known in self._sorted:
            places = np.minimum(np.searchsorted(known, digests), len(known) - 1)
            found |= known[places] == digests
        return found

    def __contains__(self, image_id: str) -> bool:
        return bool(self.holds(digests_of([image_id]))[0])


def digests_of(ids: Sequence[str]) -> np.ndarray:
    """Return the digests of ids, ``S16`` padded to 16 bytes."""
    return np.array([digest(image_id) for image_id in ids], "S16") if ids else _EMPTY


def distinct(records: Iterable[ImageRecord], seen: IdSet) -> Iterator[Sequence[ImageRecord]]:
    """Yield lists of records in which no id comes twice, nor one of `seen`; a repeated id gets ``#2``, ``#3``, ..."""
    remaining = iter(records)
    while rows := list(islice(remaining, _TOGETHER)):
        digests = digests_of([row.image_id for row in rows])
        repeated = seen.holds(digests)
        if repeated.any() or len(np.unique(digests)) < len(digests):
            rows = _renamed(rows, repeated, seen)
            digests = digests_of([row.image_id for row in rows])
        seen.add(digests)
        yield rows


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
