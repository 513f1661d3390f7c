"""What one read task takes at a time: slices of lists that exist, or a whole shard that is listed while it is read."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Slice:
    """Images `start` to `stop` of a part.

    Attributes:
        finished: Packed bits, one an image of the slice, 1 where it needs no reading; empty where all need it.
    """

    part: str
    start: int
    stop: int
    finished: bytes

    @classmethod
    def pack(cls, part: str, start: int, stop: int, finished: np.ndarray | None) -> "Slice":
        """Describe images of a part; `finished` is bool, one an image, or None where no image is."""
        bits = b"" if finished is None else np.packbits(finished).tobytes()
        return cls(part, start, stop, bits)

    def count_unfinished(self) -> int:
        """Return how many images need reading."""
        return self.stop - self.start - int(np.unpackbits(np.frombuffer(self.finished, np.uint8)).sum())

    def unfinished(self, part: pa.Table) -> list[dict[str, object]]:
        """Return the slice's rows of a part's list that need reading."""
        size = self.stop - self.start
        mine = part.slice(self.start, size)
        if self.finished:
            done = np.unpackbits(np.frombuffer(self.finished, np.uint8), count=size).astype(bool)
            mine = mine.filter(pa.array(~done))
        rows: list[dict[str, object]] = mine.to_pylist()
        return rows


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to be streamed from front to back.

    Attributes:
        number: Its place in the manifest's containers.
        finished: Digests of the ids that need no reading, 16 bytes each.
        done: Images of the chunks that have a marker, by number; they keep their lists.
    """

    number: int
    name: str
    finished: bytes
    done: Mapping[int, int]


Unit = Sequence[Slice] | ShardTask


def pack_units(units: Sequence[Unit]) -> list[dict[str, bytes]]:
    """Return units as rows of a data set, one column of bytes: they keep their form whatever a row's neighbors are."""
    return [{"unit": pickle.dumps(unit)} for unit in units]


def unpack_units(batch: pa.Table) -> list[Unit]:
    """Return the units of a batch of rows."""
    return [pickle.loads(data) for data in batch["unit"].to_pylist()]
