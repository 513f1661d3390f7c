"""How large the object stores of nodes should be for workers never to wait: from a run's plan and the bytes of its rows.

Between reading, stage 1 and stage 2 rows wait in Ray's object store, in blocks. Ray Data lets itself fill half of the
stores, shares that half out evenly among what it runs (reading, each stage, storing), and begins no task whose output
would go beyond its share. So a store that is too small leaves workers without images. Beyond the shares go what readers
have made before Ray Data knows how large it is, and blocks that are larger than a share: to disk where need be.
`python -m pipelines.benchmark.sizing` measures it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pipelines.run.capacity import READ_CPUS, Node, Pool

IMAGE_ROOM, _STREAM_IMAGE_ROOM, _MOST_BLOCK_BYTES = 256 << 10, 32 << 10, 128 << 20
"""Room of a block for each image of a unit: a block goes to one actor; those of a streamed shard are smaller, for its few
readers feed all actors."""
_FILLED = 0.5
"""Share of the stores that Ray Data lets itself fill."""
_BUFFERED = 2
"""Blocks that a task may have made and nobody has taken, before it waits."""
_READERS = 1
"""Tasks that read at once, at least: workers of stage 1 are slower than one of them."""
_SPILLS_FROM = 0.8
"""Share of a store from which Ray writes blocks to disk."""


def block_room(unit_rows: int, streamed: bool = False) -> int:
    """Return how many bytes a block has at most, but for half as many more that Ray Data does not cut off.

    Args:
        unit_rows: Images of a read task.
        streamed: Whether shards are listed while they are read.
    """
    return min(_MOST_BLOCK_BYTES, unit_rows * (_STREAM_IMAGE_ROOM if streamed else IMAGE_ROOM))


@dataclass(frozen=True)
class Flow:
    """What moves through the stages of a run.

    Attributes:
        unit_rows: Images of a read task.
        call_rows: Images of a call of a stage; a task gets as many at least.
        room: Bytes of a block at most.
        image_bytes: Mean bytes of a row that is read.
        proposal_bytes: Mean bytes of a row that stage 1 hands to stage 2.
    """

    unit_rows: int
    call_rows: int
    room: int
    image_bytes: float
    proposal_bytes: float

    @property
    def block(self) -> float:
        """Bytes of a block that was read."""
        return min(self.unit_rows * self.image_bytes, self.room)

    def shares(self, pools: Sequence[Pool]) -> list[float]:
        """Return the bytes that reading, and each stage but the last, need in the store for what they make.

        Room for what each of them is making, for one more, as a task is begun only then, and for the blocks that the next
        stage has in hand.

        Args:
            pools: Workers, in the order of their stages.
        """
        rows = max(self.call_rows, self.block / self.image_bytes)
        shares = [(_READERS + 1 + pools[0].actors) * rows * self.image_bytes]
        for pool, following in pairwise(pools):
            made = rows * self.proposal_bytes
            in_hand = max(min(made, self.room), self.call_rows * self.proposal_bytes)
            shares.append((pool.actors + 1) * min(made, _BUFFERED * self.room) + following.actors * in_hand)
        return shares

    def first_read(self, pools: Sequence[Pool], cpus: float) -> float:
        """Return the bytes that readers make before Ray Data knows how large it is.

        Args:
            pools: Workers of a node.
            cpus: Its logical CPUs; what workers leave of them, readers take.
        """
        readers = math.floor((cpus - sum(pool.actors * pool.num_cpus for pool in pools)) / READ_CPUS)
        return max(1, readers) * min(self.unit_rows * self.image_bytes, _BUFFERED * self.room)


def store_need(flow: Flow, pools: Sequence[Pool]) -> int:
    """Return how many bytes the object store of one node should have, by its workers in the order of their stages."""
    operators = len(pools) + 2
    return math.ceil(max(flow.shares(pools)) * operators / _FILLED)


@dataclass(frozen=True)
class Store:
    """The object store of a node, in bytes.

    Attributes:
        has: Its size; 0 where that is not known.
        need: What it should be.
        spilled: What may go to the node's disk when a run begins.
    """

    has: int
    need: int
    spilled: int

    def __str__(self) -> str:
        """Compare what there is and what should be."""
        disk = f"; up to {_size(self.spilled)} may go to its disk" if self.spilled else ""
        return f"{_size(self.has)}; {_size(self.need)} keep all workers busy{disk}"

    @property
    def advice(self) -> str:
        """What to do about a store that is too small; empty for one that is not."""
        if not self.has or self.has >= self.need:
            return ""
        return (
            "Ray holds images back where they do not fit; give nodes more (ray start --object-store-memory, and as large a "
            "/dev/shm)"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def tightest_store(flow: Flow, pools: Sequence[Pool], nodes: Sequence[Node]) -> Store:
    """Return the store that comes out worst, of nodes that hold workers in proportion to their GPUs or CPUs."""
    stores = [_store(flow, _share(pools, node, nodes), node) for node in nodes if node.cpus]
    return min(stores, key=lambda store: store.has / store.need)


def _store(flow: Flow, pools: Sequence[Pool], node: Node) -> Store:
    spilled = max(0, flow.first_read(pools, node.cpus) - _SPILLS_FROM * node.object_store)
    return Store(
        int(node.object_store), store_need(flow, pools), math.ceil(spilled) if node.object_store else 0
    )


def _share(pools: Sequence[Pool], node: Node, nodes: Sequence[Node]) -> list[Pool]:
    shares = []
    for pool in pools:
        mine, all_nodes = (
            (node.gpus, sum(other.gpus for other in nodes))
            if pool.num_gpus
            else (node.cpus, sum(other.cpus for other in nodes))
        )
        shares.append(replace(pool, actors=math.ceil(pool.actors * mine / all_nodes), most=None))
    return shares
