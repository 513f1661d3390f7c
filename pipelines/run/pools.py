"""How many workers a labelling job runs, and what each takes, from what the cluster has."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ovss_core.errors import ClusterError
from pipelines.run.capacity import Node, Pool, check_capacity
from pipelines.run.object_store import IMAGE_ROOM, Flow, block_room
from pipelines.run.options import PoolOptions
from pipelines.run.plan import UNIT_ROWS, rows_of_unit

_GPU_SHARE, _GPU_SHARE_FINISH = 0.75, 0.25
_WORKERS_A_GPU = 2
GPU_BATCH, CPU_BATCH = 64, 8
_DECODE_THREADS = 2
_WORKER_BYTES = 9 << 29
"""Memory of a worker of stage 1 and half a one of stage 2, with ViT-L/14 in float32."""
_LEAST_CPUS = 0.25
_MANY = 10**9


@dataclass(frozen=True)
class WorkerPlan:
    """The pools of a labelling job.

    Attributes:
        propose: Stage 1, or both stages where `finish` is None.
        torch_threads: Threads of a worker of stage 1 on CPUs; None on GPUs.
        batch_size: Images that a worker works on at once.
        worker_threads: Threads of a worker that decode images or encode masks.
    """

    propose: Pool
    finish: Pool | None
    torch_threads: int | None
    batch_size: int
    worker_threads: int

    @property
    def pools(self) -> list[Pool]:
        """Both pools."""
        return [self.propose, self.finish] if self.finish else [self.propose]

    @property
    def call_rows(self) -> int:
        """Images of one call: on GPUs several batches, so that pictures are decoded while the device has others."""
        return (4 if self.on_gpus else 1) * self.batch_size

    @property
    def unit_rows(self) -> int:
        """Images of a read task: on GPUs a few seconds' work of a worker, for the driver's work is by the task."""
        return 64 * self.batch_size if self.on_gpus else UNIT_ROWS

    @property
    def fragment_rows(self) -> int:
        """Images that are stored together."""
        return (16 if self.on_gpus else 2) * self.batch_size

    @property
    def on_gpus(self) -> bool:
        """Whether workers of this plan compute on GPUs."""
        return any(pool.num_gpus > 0 for pool in self.pools)


def plan_workers(options: PoolOptions, nodes: Sequence[Node], two_stages: bool) -> WorkerPlan:
    """Fill in what the user left open.

    With GPUs, every GPU gets two workers of stage 1, as one alone leaves it idle while it decodes and launches (222
    against 330 images a second on an H200 with 16 cores), and one of stage 2, which has a quarter of their work. Where
    the user gives a number of workers or their share, each has a GPU to itself as far as the share goes.

    Without GPUs, stage 1 gets a worker of one thread for every CPU of a node, or fewer with more threads where memory is
    short (threads of one worker wait for each other at every operation), and stage 2, which has much less to do, one for
    every two of those.

    Args:
        nodes: What the cluster has.
        two_stages: Whether stage 2 has work of its own.
    """
    split = two_stages and options.finish_actors != 0
    on_gpus = not options.wants_cpus and any(node.gpus for node in nodes)
    actors, threads = _actors_and_threads(options, nodes, on_gpus)
    together = _WORKERS_A_GPU if options.actors is None and options.num_gpus is None else 1
    share = options.num_gpus if options.num_gpus is not None else (_GPU_SHARE if split else 1.0) / together
    share_finish = options.finish_gpus if options.finish_gpus is not None else _GPU_SHARE_FINISH
    finishers = options.finish_actors or (actors if on_gpus else math.ceil(actors / 2))
    actors *= together if on_gpus else 1
    plan = WorkerPlan(
        Pool("propose" if split else "segment", actors, _LEAST_CPUS, share if on_gpus else 0.0),
        Pool("finish", finishers, _LEAST_CPUS, share_finish if on_gpus else 0.0) if split else None,
        threads,
        options.batch_size or (GPU_BATCH if on_gpus else CPU_BATCH),
        max(4, math.floor(sum(node.cpus for node in nodes) / actors)) if on_gpus else _DECODE_THREADS,
    )
    plan = _growing(plan, options)
    if options.num_cpus is not None:
        return _with_cpus(plan, options.num_cpus)
    most = 1.0 if on_gpus else float(threads or 1)
    return next((fit for fit in _larger_first(plan, most) if _fits(fit, nodes)), plan)


def expected_flow(
    plan: WorkerPlan,
    images: int,
    image_bytes: float = IMAGE_ROOM,
    proposal_bytes: float = IMAGE_ROOM,
    whole: bool = False,
    streamed: bool = False,
) -> Flow:
    """Say what will move through the stages of a run.

    Args:
        images: How many; 0 where that is not known yet.
        image_bytes: Mean bytes of a row that is read; unless given, a guess on the large side.
        proposal_bytes: Mean bytes of a row that stage 1 hands to stage 2; the same.
        whole: Whether a read task takes a shard or a row group, however many images that are.
        streamed: Whether shards are listed while they are read.
    """
    many = images or _MANY
    most = max(pool.largest for pool in plan.pools)
    rows = many if whole else rows_of_unit(many, most, plan.call_rows, plan.unit_rows)
    room = block_room(plan.unit_rows, streamed)
    return Flow(rows, plan.call_rows, room, image_bytes, proposal_bytes)


def _growing(plan: WorkerPlan, options: PoolOptions) -> WorkerPlan:
    """Let pools grow as nodes join; stage 2 with stage 1, unless its number was given."""
    first, second = plan.propose, plan.finish
    if options.max_actors is None or options.max_actors <= first.actors:
        return plan
    if second and not options.finish_actors:
        second = replace(second, most=math.ceil(second.actors * options.max_actors / first.actors))
    return replace(plan, propose=replace(first, most=options.max_actors), finish=second)


def _actors_and_threads(options: PoolOptions, nodes: Sequence[Node], on_gpus: bool) -> tuple[int, int | None]:
    """Return the workers of stage 1 and the threads of each."""
    if on_gpus:
        return options.actors or max(1, sum(math.floor(node.gpus) for node in nodes)), options.torch_threads
    largest = max((math.floor(node.cpus) for node in nodes), default=1)
    sizes = [node.cpus * _WORKER_BYTES / node.memory for node in nodes if node.memory]
    wanted = math.ceil(max(sizes, default=1))
    threads = options.torch_threads or max(1, min(wanted, largest))
    actors = options.actors or max(1, sum(math.floor(node.cpus / threads) for node in nodes))
    cpus = math.floor(sum(node.cpus for node in nodes))
    return actors, options.torch_threads or max(1, min(threads, cpus // actors))


def _larger_first(plan: WorkerPlan, most: float) -> Iterator[WorkerPlan]:
    """Yield the plan with ever smaller reservations, down from `most` CPUs a worker in quarters."""
    for quarters in range(math.floor(4 * most), 0, -1):
        yield _with_cpus(plan, quarters * _LEAST_CPUS)


def _with_cpus(plan: WorkerPlan, num_cpus: float) -> WorkerPlan:
    finish = replace(plan.finish, num_cpus=num_cpus) if plan.finish else None
    return replace(plan, propose=replace(plan.propose, num_cpus=num_cpus), finish=finish)


def _fits(plan: WorkerPlan, nodes: Sequence[Node]) -> bool:
    try:
        check_capacity(plan.pools, nodes)
    except ClusterError:
        return False
    return True
