"""Whether a cluster can hold a job, decided before anything starts; a job that does not fit would wait for ever."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import ray

from ovss_core.errors import ClusterError

READ_CPUS = 0.25
WRITE_CPUS = 0.25
_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")


@dataclass(frozen=True)
class Pool:
    """Actors, each with its share of a node.

    Attributes:
        actors: How many run at once, at least 1; where there is `most`, how many there are at least.
        num_cpus: Logical CPUs that each reserves; may be a fraction.
        num_gpus: GPUs that each reserves; may be a fraction below 1.
        most: How many there may be as nodes join; None where the number is fixed.
    """

    name: str
    actors: int
    num_cpus: float
    num_gpus: float = 0.0
    most: int | None = None

    @property
    def largest(self) -> int:
        """How many there may be."""
        return self.most or self.actors

    @property
    def size(self) -> str:
        """The number in words: ``4``, or ``4 to 64``."""
        return f"{self.actors} to {self.most}" if self.largest > self.actors else str(self.actors)


@dataclass(frozen=True)
class Node:
    """Logical resources of one node; memory and object store in bytes, 0 where they are not known."""

    cpus: float
    gpus: float
    memory: float = 0.0
    object_store: float = 0.0


def cluster_nodes() -> list[Node]:
    """Return the nodes of the connected cluster that are alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(*(float(found.get(resource, 0)) for resource in _RESOURCES)) for found in alive]


def describe_nodes(nodes: Sequence[Node]) -> str:
    """Say in words what a cluster has."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return f"{count_of(len(nodes), 'node')} with {count_of(cpus, 'CPU')} and {count_of(gpus, 'GPU')}"


def count_of(number: float, word: str) -> str:
    """Return "1 node", "2 nodes"."""
    return f"{number:g} {word}{'' if number == 1 else 's'}"


def check_capacity(pools: Sequence[Pool], nodes: Sequence[Node]) -> None:
    """Refuse a cluster that cannot run all pools at once beside one read task and one write task.

    Raises:
        ClusterError: Too few CPUs or GPUs, in sum or because no node can hold one more actor.
    """
    cpus = sum(pool.actors * pool.num_cpus for pool in pools) + READ_CPUS + WRITE_CPUS
    gpus = sum(pool.actors * pool.num_gpus for pool in pools)
    have_cpus, have_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    wants = ", ".join(
        f"{pool.actors} {pool.name} x ({pool.num_cpus:g} CPU, {pool.num_gpus:g} GPU)" for pool in pools
    )
    if cpus > have_cpus + 1e-9 or gpus > have_gpus + 1e-9:
        raise ClusterError(
            f"the job needs {cpus:g} CPUs and {gpus:g} GPUs at once ({wants}, reading and writing "
            f"{READ_CPUS + WRITE_CPUS:g} CPU), the cluster has {have_cpus:g} and {have_gpus:g}; ask for fewer actors "
            "or less for each, or add nodes"
        )
    _place(pools, nodes, wants)


def _place(pools: Sequence[Pool], nodes: Sequence[Node], wants: str) -> None:
    """Put the largest first where the least is left over; shares of one worker's GPU lie on one card, as in Ray."""
    free = [(Fraction(str(node.cpus)), _cards(node.gpus)) for node in nodes]
    for pool in sorted(pools, key=lambda pool: (-pool.num_gpus, -pool.num_cpus)):
        cpus, gpus = Fraction(str(pool.num_cpus)), Fraction(str(pool.num_gpus))
        for number in range(pool.actors):
            fitting = [
                (sum(cards), left, place, taken)
                for place, (left, cards) in enumerate(free)
                if left >= cpus and (taken := _take(cards, gpus)) is not None
            ]
            if not fitting:
                raise ClusterError(
                    f"no node can hold actor {number + 1} of {pool.actors} of {pool.name} ({wants}); the nodes have "
                    f"{', '.join(f'{node.cpus:g} CPU/{node.gpus:g} GPU' for node in nodes)}; ask for fewer actors "
                    "or less for each"
                )
            _, left, place, taken = min(fitting)
            free[place] = left - cpus, taken


def _cards(gpus: float) -> list[Fraction]:
    whole, rest = divmod(Fraction(str(gpus)), 1)
    return [Fraction(1)] * int(whole) + ([rest] if rest else [])


def _take(cards: list[Fraction], need: Fraction) -> list[Fraction] | None:
    """Return what is left of a node's cards when one worker has its share; None where it does not fit."""
    if need > 1:
        full = [place for place, card in enumerate(cards) if card == 1]
        wanted = full[: math.ceil(need)] if len(full) >= need else None
        return None if wanted is None else [card for place, card in enumerate(cards) if place not in wanted]
    if not need:
        return cards
    fitting = [(card, place) for place, card in enumerate(cards) if card >= need]
    if not fitting:
        return None
    _, chosen = min(fitting)
    return [card - need if place == chosen else card for place, card in enumerate(cards)]
