"""What a plan waits for, decided on lists of nodes; no cluster is started."""

import pytest

from ovss_core.errors import ClusterError
from pipelines.run.awaiting import SETTLED_S, Growth, await_plan, find_lack, growth_of_report, worker_bundles
from pipelines.run.capacity import Node
from pipelines.run.options import PoolOptions

HEAD, CPU_NODE, GPU_NODE = Node(0, 0), Node(8, 0), Node(16, 1)
BOOTING = Growth({"gpu_worker": 2}, 2.0, may_grow=True)
ON_CPUS = [PoolOptions(device="cpu"), PoolOptions(num_gpus=0)]


def lacks(options: PoolOptions, nodes: list[Node], growth: Growth | None = None, **state: bool) -> str | None:
    lack = find_lack(options, nodes, True, growth or Growth(), **state)
    return None if lack is None else lack.what


def test_a_head_without_cpus_is_never_planned_on() -> None:
    for growth in (Growth(), BOOTING):
        for options in (PoolOptions(), *ON_CPUS):
            assert lacks(options, [HEAD], growth) == "a node with CPUs for workers"


def test_no_plan_without_gpus_where_some_are_awaited_unless_it_was_asked_for() -> None:
    nodes = [HEAD, CPU_NODE]
    assert lacks(PoolOptions(), nodes, BOOTING) == "a GPU"
    assert lacks(PoolOptions(), nodes, Growth({"some": 1}, None)) == "a GPU"
    assert lacks(PoolOptions(), nodes, Growth(may_grow=True)) == "a GPU"
    assert lacks(PoolOptions(), nodes, waits=True) == "a GPU"
    assert lacks(PoolOptions(), nodes) is None
    for options in ON_CPUS:
        assert lacks(options, nodes, BOOTING) is None


def test_gpus_that_were_asked_for_are_not_replaced_by_cpus() -> None:
    for options in (PoolOptions(num_gpus=0.5), PoolOptions(device="cuda"), PoolOptions(device="cuda:1")):
        assert lacks(options, [CPU_NODE]) == "a GPU"
        assert lacks(options, [CPU_NODE, GPU_NODE]) is None


def test_who_waits_goes_on_while_nodes_start_or_have_only_just_come() -> None:
    nodes = [HEAD, GPU_NODE]
    assert lacks(PoolOptions(), nodes, BOOTING, waits=True) == "nodes that are starting"
    assert lacks(PoolOptions(), nodes, waits=True, settled=False) == "further nodes"
    assert lacks(PoolOptions(), nodes, waits=True, settled=True) is None
    assert lacks(PoolOptions(), nodes, BOOTING) is None


def test_a_number_of_workers_is_the_number_waited_for_and_no_more() -> None:
    options = PoolOptions(actors=2)
    assert lacks(options, [HEAD, GPU_NODE], BOOTING, waits=True) == "room for all workers"
    assert lacks(options, [HEAD, GPU_NODE, GPU_NODE], BOOTING, waits=True, settled=False) is None


def test_the_report_of_an_autoscaler_says_what_starts_and_how_many_gpus_that_brings() -> None:
    report = {
        "active_nodes": {"head": 1},
        "pending_nodes": [["10.0.0.7", "gpu_worker", "setting-up"]],
        "pending_launches": {"gpu_worker": 1, "cpu_worker": 2},
        "pending_resources": {"CPU": 48, "GPU": 2},
    }
    growth = growth_of_report({"autoscaler_report": report})
    assert growth == Growth({"gpu_worker": 2, "cpu_worker": 2}, 2.0, may_grow=True)
    assert str(growth) == "2 cpu_worker, 2 gpu_worker starting"
    fixed = {"active_nodes": {"node_0f3a": 1, "node_77": 1}, "pending_nodes": [], "pending_launches": {}}
    for status in ({}, {"autoscaler_report": None}, {"autoscaler_report": fixed}):
        assert growth_of_report(status) == Growth()


def test_the_autoscaler_is_asked_for_workers_of_both_stages_on_one_gpu() -> None:
    assert worker_bundles(PoolOptions(), True) == [{"CPU": 0.5, "GPU": 1.0}]
    assert worker_bundles(PoolOptions(actors=3, num_cpus=2), False) == [{"CPU": 2, "GPU": 1.0}] * 3
    assert worker_bundles(PoolOptions(num_gpus=2, finish_actors=0), True) == [{"CPU": 0.25, "GPU": 2}]
    assert worker_bundles(PoolOptions(device="cpu", actors=2), True) == [{"CPU": 0.5}] * 2


class Clock:
    """Stands for time: sleeping moves it on, and nodes join at the moments that a test sets."""

    def __init__(self, joins: dict[float, list[Node]], growth: Growth) -> None:
        self.now, self.joins, self.growth = 0.0, joins, growth
        self.asked: list[list[dict[str, float]]] = []

    def nodes(self) -> list[Node]:
        return [node for moment, joined in self.joins.items() if moment <= self.now for node in joined]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Clock":
        group = "pipelines.run.awaiting.ray.util.{}_group".format
        replacements = {
            "pipelines.run.awaiting.time.monotonic": lambda: self.now,
            "pipelines.run.awaiting.time.sleep": self.sleep,
            "pipelines.run.awaiting.cluster_nodes": self.nodes,
            "pipelines.run.awaiting.cluster_growth": lambda: self.growth,
            group("placement"): lambda bundles, strategy: self.asked.append(bundles),
            group("remove_placement"): lambda group: None,
        }
        for name, replacement in replacements.items():
            monkeypatch.setattr(name, replacement)
        return self


def test_the_plan_takes_the_nodes_that_boot_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock({0: [HEAD], 200: [GPU_NODE], 220: [GPU_NODE]}, Growth()).install(monkeypatch)
    said: list[str] = []
    plan, nodes = await_plan(PoolOptions(), True, 900, said.append)
    assert (plan.propose.actors, plan.propose.num_gpus, len(nodes)) == (4, 0.375, 3)
    assert clock.now == pytest.approx(220 + SETTLED_S)
    assert clock.asked == [[{"CPU": 0.5, "GPU": 1.0}]]
    assert said[0] == (
        "waiting for a node with CPUs for workers (now 1 node with 0 CPUs and 0 GPUs; 0:15:00 left)"
    )
    assert "waiting for further nodes (now 2 nodes with 16 CPUs and 1 GPU" in "\n".join(said)


def test_when_time_is_up_the_plan_takes_what_is_there_or_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Clock({0: [HEAD], 50: [GPU_NODE]}, BOOTING).install(monkeypatch)
    plan, _ = await_plan(PoolOptions(), True, 60)
    assert (plan.propose.actors, plan.on_gpus) == (2, True)

    Clock({0: [CPU_NODE]}, BOOTING).install(monkeypatch)
    message = (
        r"the cluster lacks a GPU after 60 s: it has 1 node with 8 CPUs and 0 GPUs; 2 gpu_worker starting; wait longer "
        r"with --cluster-wait-s, or give --device cpu"
    )
    with pytest.raises(ClusterError, match=message):
        await_plan(PoolOptions(), True, 60)


def test_who_does_not_wait_is_told_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock({0: [HEAD]}, BOOTING).install(monkeypatch)
    with pytest.raises(ClusterError, match="2 gpu_worker starting; give --cluster-wait-s 900 to wait"):
        await_plan(PoolOptions(), True, 0)
    assert (clock.now, clock.asked) == (0.0, [])
    Clock({0: [CPU_NODE]}, Growth()).install(monkeypatch)
    with pytest.raises(ClusterError, match="this machine lacks a GPU: it has 1 node with 8 CPUs"):
        await_plan(PoolOptions(device="cuda"), True, 900, joined=False)
