"""How large a node's object store should be: what lies in it while readers and workers are busy, and some room.

Between reading, stage 1 and stage 2 rows wait in Ray's object store, in blocks. Ray Data decides how many: so many tasks
of an actor, so many blocks of a task that nobody has taken. In a smaller store the run goes on, as Ray holds tasks back
and writes blocks to disk, but it may be slower. `python -m pipelines.benchmark.sizing` measures it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.run.capacity import READ_CPUS, Node, Pool

IMAGE_ROOM, _STREAM_IMAGE_ROOM, _MOST_BLOCK_BYTES = 256 << 10, 32 << 10, 128 << 20
"""Room of a block for each image of a unit: a block goes to one actor; those of a streamed shard are smaller, for its few
readers feed all actors."""
_IN_FLIGHT = 2
"""Tasks that Ray Data gives an actor at a time; what they work on lies in the store."""
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

    def lying(self, pools: Sequence[Pool], cpus: float) -> float:
        """Return the bytes that lie in the store of one node while its readers and workers are busy.

        Args:
            pools: The workers of that node, in the order of their stages.
            cpus: Its logical CPUs; what workers leave of them, tasks that read take.
        """
        readers = max(1, math.floor((cpus - sum(pool.actors * pool.num_cpus for pool in pools)) / READ_CPUS))
        block = min(self.unit_rows * self.image_bytes, self.room)
        lying, rows = readers * block, max(self.call_rows, block / self.image_bytes)
        for place, pool in enumerate(pools):
            lying += pool.actors * _IN_FLIGHT * rows * (self.proposal_bytes if place else self.image_bytes)
            if place + 1 < len(pools):  # what the last stage makes is small
                made = rows * self.proposal_bytes
                lying += pool.actors * made
                rows = max(self.call_rows, min(made, self.room) / self.proposal_bytes)
        return lying


def store_need(flow: Flow, pools: Sequence[Pool], cpus: float) -> int:
    """Return how many bytes the object store of one node should have; arguments as for `Flow.lying`."""
    return math.ceil(flow.lying(pools, cpus) / _SPILLS_FROM)


@dataclass(frozen=True)
class Store:
    """The object store of a node, and what it should be, in bytes."""

    need: int
    has: int

    def __str__(self) -> str:
        """Compare the two."""
        return f"{self.has / 1e9:.1f} GB, of {self.need / 1e9:.1f} GB that this run may need"

    @property
    def advice(self) -> str:
        """What to do about a store that is too small; empty for one that is not."""
        if not self.has or self.has >= self.need:
            return ""
        return (
            "Ray writes the rest to disk and the run may be slower; give nodes more (ray start --object-store-memory, and as "
            "large a /dev/shm) or fewer CPUs for readers (--num-cpus)"
        )


def tightest_store(flow: Flow, pools: Sequence[Pool], nodes: Sequence[Node]) -> Store:
    """Return the store that comes out worst, of nodes that hold workers in proportion to their GPUs or CPUs."""
    stores = [
        Store(store_need(flow, _share(pools, node, nodes), node.cpus), int(node.object_store))
        for node in nodes
        if node.cpus
    ]
    return min(stores, key=lambda store: store.has / store.need)


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
