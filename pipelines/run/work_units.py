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
        finished: Packed bits, one an image of the slice, 1 where it needs no reading.
    """

    part: str
    start: int
    stop: int
    finished: bytes

    @classmethod
    def pack(cls, part: str, start: int, stop: int, finished: np.ndarray) -> "Slice":
        """Describe images of a part; `finished` is bool, one an image."""
        return cls(part, start, stop, np.packbits(finished).tobytes())

    def unfinished(self, part: pa.Table) -> list[dict[str, object]]:
        """Return the slice's rows of a part's list that need reading."""
        size = self.stop - self.start
        done = np.unpackbits(np.frombuffer(self.finished, np.uint8), count=size).astype(bool)
        rows: list[dict[str, object]] = part.slice(self.start, size).filter(pa.array(~done)).to_pylist()
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
