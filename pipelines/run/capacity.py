"""Whether a cluster can hold a job, decided before anything starts; a job that does not fit would wait for ever."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import ray

from ovss_core.errors import ClusterError

READ_CPUS = 0.25
WRITE_CPUS = 0.25


@dataclass(frozen=True)
class Pool:
    """A fixed number of actors, each with its share of a node.

    Attributes:
        actors: How many run at once, at least 1.
        num_cpus: Logical CPUs that each reserves; may be a fraction.
        num_gpus: GPUs that each reserves; may be a fraction below 1.
    """

    name: str
    actors: int
    num_cpus: float
    num_gpus: float = 0.0


@dataclass(frozen=True)
class Node:
    """Logical resources of one node; memory in bytes, 0 where it is not known."""

    cpus: float
    gpus: float
    memory: float = 0.0


def cluster_nodes() -> list[Node]:
    """Return the nodes of the connected cluster that are alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [
        Node(*(float(found.get(resource, 0)) for resource in ("CPU", "GPU", "memory"))) for found in alive
    ]


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
    free = [[Fraction(str(node.cpus)), Fraction(str(node.gpus))] for node in nodes]
    for pool in sorted(pools, key=lambda pool: (-pool.num_gpus, -pool.num_cpus)):
        need = Fraction(str(pool.num_cpus)), Fraction(str(pool.num_gpus))
        for number in range(pool.actors):
            fitting = [node for node in free if node[0] >= need[0] and node[1] >= need[1]]
            if not fitting:
                raise ClusterError(
                    f"no node can hold actor {number + 1} of {pool.actors} of {pool.name} ({wants}); the nodes have "
                    f"{', '.join(f'{node.cpus:g} CPU/{node.gpus:g} GPU' for node in nodes)}; ask for fewer actors "
                    "or less for each"
                )
            best = min(fitting, key=lambda node: (node[1], node[0]))
            best[0] -= need[0]
            best[1] -= need[1]
