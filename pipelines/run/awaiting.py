"""When a cluster is complete enough to plan on: a plan is made from the nodes of the moment it is asked for.

The nodes that a run will work on may still be booting. What is to come is found out where Ray tells it (an
autoscaler reports the nodes it is starting), and otherwise from what the user says: with ``--cluster-wait-s``
nodes are awaited. A plan without GPUs is not made for a cluster that has or awaits some, unless it was asked for.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.experimental import internal_kv

from ovss_core.errors import ClusterError
from pipelines.run.capacity import Node, check_capacity, cluster_nodes, describe_nodes
from pipelines.run.options import PoolOptions
from pipelines.run.pools import WorkerPlan, plan_workers
from pipelines.run.progress import duration

SETTLED_S = 30.0
"""Nodes that boot together join within seconds of each other, where no autoscaler tells of those to come."""
_LOOK_S = 1.0
_AUTOSCALER_STATUS = "__autoscaling_status"
"""Where Ray's autoscaler puts its report; `ray status` reads it there."""
_WITHOUT_AUTOSCALER = "node_"
"""How the names of node types begin where there is none: they then carry the nodes' ids."""


@dataclass(frozen=True)
class Growth:
    """What an autoscaler says of nodes that are not there yet.

    Attributes:
        starting: Nodes that are being started, by type.
        gpus: GPUs of those nodes; None where that is not said.
        may_grow: Whether an autoscaler starts nodes on demand.
    """

    starting: Mapping[str, int] = field(default_factory=dict)
    gpus: float | None = 0.0
    may_grow: bool = False

    @property
    def may_bring_gpus(self) -> bool:
        """Whether GPUs may join; what is not known may be."""
        return self.may_grow or self.gpus is None or self.gpus > 0

    def __str__(self) -> str:
        """Say which nodes are being started; empty if none is."""
        names = ", ".join(f"{count} {name}" for name, count in sorted(self.starting.items()))
        return f"{names} starting" if names else ""


@dataclass(frozen=True)
class Lack:
    """Why a plan is not to be made yet.

    Attributes:
        what: What is missing, as the end of "waiting for".
        advice: What the user can do, if it stays missing.
        essential: False if a plan can be made without, once time is up.
        report: The whole of what is missing, where it takes more words; it holds its own advice.
    """

    what: str
    advice: str = ""
    essential: bool = True
    report: str = ""


def find_lack(
    options: PoolOptions,
    nodes: Sequence[Node],
    two_stages: bool,
    growth: Growth,
    waits: bool = False,
    settled: bool = True,
) -> Lack | None:
    """Say what a cluster lacks for a plan to be made, or None if it is to be made now.

    Args:
        options: What the user asked for.
        nodes: What is there.
        two_stages: Whether stage 2 has work of its own.
        growth: What is to come.
        waits: Whether the user awaits nodes.
        settled: Whether no node has come or gone for `SETTLED_S`.
    """
    if not any(node.cpus for node in nodes):
        return Lack("a node with CPUs for workers", "start worker nodes")
    if not options.wants_cpus and not any(node.gpus for node in nodes):
        if options.wants_gpus:
            return Lack("a GPU", "leave --num-gpus and --device out to compute on what there is")
        if waits or growth.may_bring_gpus:
            return Lack("a GPU", "give --device cpu to compute on CPUs")
    try:
        check_capacity(plan_workers(options, nodes, two_stages).pools, nodes)
    except ClusterError as error:
        return Lack("room for all workers", report=str(error))
    if options.actors is not None or not waits:
        return None
    if growth.starting:
        return Lack("nodes that are starting", essential=False)
    return None if settled else Lack("further nodes", essential=False)


def await_plan(
    options: PoolOptions,
    two_stages: bool,
    seconds: float,
    tell: Callable[[str], None] = lambda text: None,
    joined: bool = True,
) -> tuple[WorkerPlan, list[Node]]:
    """Plan the workers on the connected cluster, when the nodes are there that it has to wait for.

    Args:
        options: What the user asked for.
        two_stages: Whether stage 2 has work of its own.
        seconds: How long to wait at most; 0 plans on what is there.
        tell: Takes what is being waited for.
        joined: False for a Ray that was started on this machine alone, which no node will join.

    Returns:
        The plan, and the nodes that it was made from.

    Raises:
        ClusterError: What is missing, and what can be done.
    """
    begin = changed = time.monotonic()
    waits, before = joined and seconds > 0, cluster_nodes()
    with _demand() as ask:
        while True:
            now, nodes = time.monotonic(), cluster_nodes()
            changed, before = (changed if nodes == before else now), nodes
            growth = cluster_growth() if joined else Growth()
            lack = find_lack(options, nodes, two_stages, growth, waits, now - changed >= SETTLED_S)
            left = begin + seconds - now
            if lack is None or (left <= 0 and not lack.essential):
                return plan_workers(options, nodes, two_stages), nodes
            if not waits or left <= 0:
                raise ClusterError(_refusal(lack, nodes, growth, joined, seconds))
            if lack.essential:
                ask(worker_bundles(options, two_stages))
            found = "; ".join(filter(None, [describe_nodes(nodes), str(growth)]))
            tell(f"waiting for {lack.what} (now {found}; {duration(left)} left)")
            time.sleep(min(_LOOK_S, max(left, 0.0)))


def _refusal(lack: Lack, nodes: Sequence[Node], growth: Growth, joined: bool, seconds: float) -> str:
    """Name what is missing, what is there, and the ways on."""
    wait = (
        "wait longer with --cluster-wait-s"
        if seconds
        else "give --cluster-wait-s 900 to wait for nodes to join"
    )
    coming = f"; {growth}" if growth.starting else ""
    if lack.report:
        return f"{lack.report}{coming}; {wait}" if joined and (seconds or coming) else lack.report
    place = "the cluster" if joined else "this machine"
    waited = f" after {seconds:g} s" if joined and seconds else ""
    advice = f"{wait}, or {lack.advice}" if joined else lack.advice
    return f"{place} lacks {lack.what}{waited}: it has {describe_nodes(nodes)}{coming}; {advice}"


def worker_bundles(options: PoolOptions, two_stages: bool) -> list[dict[str, float]]:
    """Return what the workers need, one entry for each of stage 1 with its share of stage 2; one where it is open."""
    gpus = 0.0
    if not options.wants_cpus:
        shared = 1.0 if options.num_gpus is None else options.num_gpus + (options.finish_gpus or 0.0)
        gpus = shared if shared > 1 else 1.0
    cpus = (options.num_cpus or 0.25) * (2 if two_stages and options.finish_actors != 0 else 1)
    bundle = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    return [bundle] * (options.actors or 1)


@contextmanager
def _demand() -> Iterator[Callable[[list[dict[str, float]]], None]]:
    """Tell the autoscaler what is needed, so that it starts nodes at all.

    A placement group, and not `request_resources`: that request would outlive a driver that is killed, keep nodes
    running for ever, and replace an operator's own.
    """
    held: list[Any] = []

    def ask(bundles: list[dict[str, float]]) -> None:
        if not held:
            held.append(ray.util.placement_group(bundles, strategy="PACK"))

    try:
        yield ask
    finally:
        for group in held:
            ray.util.remove_placement_group(group)


def cluster_growth() -> Growth:
    """Ask the connected cluster's autoscaler what it is starting."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if is_autoscaler_v2(fetch_from_server=True):
        return _growth_of_second_autoscaler()
    report = internal_kv._internal_kv_get(_AUTOSCALER_STATUS)
    return growth_of_report(json.loads(report) if report else {})


def growth_of_report(status: Mapping[str, Any]) -> Growth:
    """Read the report that Ray's first autoscaler writes every few seconds."""
    report = status.get("autoscaler_report") or {}
    starting = Counter(report.get("pending_launches") or {})
    starting.update(kind for _, kind, _ in report.get("pending_nodes") or ())
    gpus = (report.get("pending_resources") or {}).get("GPU", 0.0)
    types = [*(report.get("active_nodes") or {}), *starting]
    may_grow = any(not name.startswith(_WITHOUT_AUTOSCALER) for name in types)
    return Growth(dict(starting), float(gpus), may_grow)


def _growth_of_second_autoscaler() -> Growth:
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(internal_kv.internal_kv_get_gcs_client().address)
    starting: Counter[str] = Counter()
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] += launch.count
    starting.update(node.ray_node_type_name for node in status.pending_nodes)
    types = [node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)]
    may_grow = any(name and not name.startswith(_WITHOUT_AUTOSCALER) for name in [*types, *starting])
    return Growth(dict(starting), None if starting else 0.0, may_grow)
