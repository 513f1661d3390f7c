"""How many workers a labelling job runs, and what each takes, from what the cluster has."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.capacity import READ_CPUS, WRITE_CPUS, Node, Pool
from pipelines.options import PoolOptions

_GPU_SHARE, _GPU_SHARE_RESOLVE = 0.75, 0.25
_GPU_BATCH, _CPU_BATCH = 64, 8


@dataclass(frozen=True)
class WorkerPlan:
    """The pools of a labelling job.

    Attributes:
        propose: Stage 1, or both stages where `resolve` is None.
        torch_threads: Threads of a worker on CPUs; None on GPUs.
        batch_size: Images of one call.
    """

    propose: Pool
    resolve: Pool | None
    torch_threads: int | None
    batch_size: int

    @property
    def pools(self) -> list[Pool]:
        """Both pools."""
        return [self.propose, self.resolve] if self.resolve else [self.propose]


def plan_workers(options: PoolOptions, nodes: Sequence[Node], two_stages: bool) -> WorkerPlan:
    """Fill in what the user left open.

    With GPUs, every GPU gets one worker of each stage (the memory of both is small, and neither stage waits for
    the other's GPU). Without, the CPUs are shared out so that the threads of all workers together match them.

    Args:
        nodes: What the cluster has.
        two_stages: Whether stage 2 has work of its own.
    """
    split = two_stages and options.resolve_actors != 0
    gpus = math.floor(sum(node.gpus for node in nodes))
    if options.device.startswith("cpu") or options.num_gpus == 0:
        gpus = 0
    cpus = sum(node.cpus for node in nodes)
    actors = options.actors or (gpus if gpus else max(1, math.floor(cpus / 4 if split else cpus / 2)))
    resolvers = (options.resolve_actors or (gpus if gpus else max(1, actors // 2))) if split else 0
    share = options.num_gpus if options.num_gpus is not None else (_GPU_SHARE if split else 1.0)
    share_resolve = options.resolve_gpus if options.resolve_gpus is not None else _GPU_SHARE_RESOLVE
    num_cpus = (
        options.num_cpus if options.num_cpus is not None else _cpus_each(cpus, actors + resolvers, bool(gpus))
    )
    threads = options.torch_threads or (None if gpus else max(1, math.floor(cpus / (actors + resolvers))))
    return WorkerPlan(
        Pool("propose" if split else "segment", actors, num_cpus, share if gpus else 0.0),
        Pool("resolve", resolvers, num_cpus, share_resolve if gpus else 0.0) if split else None,
        threads,
        options.batch_size or (_GPU_BATCH if gpus else _CPU_BATCH),
    )


def _cpus_each(cpus: float, workers: int, with_gpus: bool) -> float:
    """Divide what reading and writing leave, in quarters of a CPU."""
    quarters = math.floor(4 * (cpus - READ_CPUS - WRITE_CPUS) / workers) / 4
    return min(max(quarters, 0.25), 1.0) if with_gpus else max(quarters, 0.25)
