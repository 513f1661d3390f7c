import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovss_core.errors import ClusterError, ConfigError
from pipelines.run.capacity import Node, Pool, check_capacity
from pipelines.run.options import PoolOptions, RunOptions
from pipelines.run.pools import plan_workers


def test_what_reading_and_writing_need_counts_too() -> None:
    check_capacity([Pool("propose", 3, 0.5)], [Node(2, 0)])
    with pytest.raises(ClusterError, match=r"needs 2\.5 CPUs and 0 GPUs .*the cluster has 2 and 0"):
        check_capacity([Pool("propose", 2, 1.0)], [Node(2, 0)])


def test_two_pools_share_one_gpu_by_fractions_but_not_whole() -> None:
    check_capacity([Pool("propose", 1, 1, 0.75), Pool("finish", 1, 1, 0.25)], [Node(8, 1)])
    with pytest.raises(ClusterError, match="2 GPUs at once"):
        check_capacity([Pool("propose", 1, 1, 1), Pool("finish", 1, 1, 1)], [Node(8, 1)])


def test_actors_must_fit_into_single_nodes_not_only_into_the_sum() -> None:
    with pytest.raises(ClusterError, match="no node can hold actor 1 of 1 of propose"):
        check_capacity([Pool("propose", 1, 3)], [Node(2, 0), Node(2, 0)])
    with pytest.raises(ClusterError, match="no node can hold actor 2 of 2"):
        check_capacity([Pool("propose", 2, 1, 0.75)], [Node(0, 2), Node(8, 0.75)])


@given(
    st.integers(1, 6),
    st.sampled_from([2, 3, 4, 8, 16, 64]),
    st.sampled_from([0, 0, 1, 2, 8]),
    st.booleans(),
)
def test_the_default_plan_always_fits_its_cluster(count: int, cpus: int, gpus: int, two_stages: bool) -> None:
    nodes = [Node(max(cpus, 2 * gpus), gpus)] * count
    plan = plan_workers(PoolOptions(), nodes, two_stages)
    check_capacity(plan.pools, nodes)
    if gpus:
        assert plan.propose.actors == 2 * gpus * count
        assert sum(pool.actors * pool.num_gpus for pool in plan.pools) == gpus * count
    else:
        assert plan.torch_threads
        assert plan.propose.actors * plan.torch_threads <= cpus * count
        assert plan.torch_threads <= cpus
    assert (plan.finish is not None) == two_stages


def test_workers_on_cpus_have_one_thread_each_unless_memory_is_short() -> None:
    def shape(*nodes: Node) -> tuple[int, int | None]:
        plan = plan_workers(PoolOptions(), nodes, True)
        return plan.propose.actors, plan.torch_threads

    assert shape(Node(2, 0, 16 << 30)) == (2, 1)
    assert shape(Node(8, 0, 10 << 30)) == (2, 4)
    assert shape(Node(8, 0)) == (8, 1)
    assert shape(Node(8, 0, 64 << 30), Node(8, 0, 20 << 30)) == (8, 2)


def test_shares_of_a_card_lie_on_one_card() -> None:
    check_capacity([Pool("propose", 4, 0.25, 0.375), Pool("finish", 2, 0.25, 0.25)], [Node(4, 2)])
    with pytest.raises(ClusterError, match="no node can hold actor 3 of 3 of propose"):
        check_capacity([Pool("propose", 3, 0.25, 0.6)], [Node(4, 2)])


def test_a_number_of_workers_gives_each_a_card() -> None:
    plan = plan_workers(PoolOptions(actors=2), [Node(8, 2)], True)
    assert [(pool.actors, pool.num_gpus) for pool in plan.pools] == [(2, 0.75), (2, 0.25)]
    plan = plan_workers(PoolOptions(num_gpus=0.5), [Node(8, 2)], True)
    assert [(pool.actors, pool.num_gpus) for pool in plan.pools] == [(2, 0.5), (2, 0.25)]


def test_one_pool_does_both_stages_on_demand() -> None:
    plan = plan_workers(PoolOptions(actors=2, finish_actors=0, batch_size=3), [Node(2, 0)], True)
    assert (plan.finish, plan.propose.actors, plan.torch_threads, plan.batch_size) == (None, 2, 1, 3)


def test_gpus_are_left_alone_when_the_user_says_so() -> None:
    for options in (PoolOptions(device="cpu"), PoolOptions(num_gpus=0)):
        plan = plan_workers(options, [Node(8, 1)], True)
        assert all(pool.num_gpus == 0 for pool in plan.pools)


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="actors is 0"):
        PoolOptions(actors=0)
    with pytest.raises(ConfigError, match="give one of them"):
        RunOptions("out", overwrite=True, retry_failed=True)
    with pytest.raises(ConfigError, match="shard_size is 0"):
        RunOptions("out", shard_size=0)


def test_read_tasks_calls_and_fragments_grow_with_the_batches_of_cards_only() -> None:
    on_card = plan_workers(PoolOptions(batch_size=64), [Node(16, 1)], two_stages=True)
    on_cpus = plan_workers(PoolOptions(), [Node(16, 0)], two_stages=True)
    assert (on_card.unit_rows, on_card.fragment_rows, on_card.call_rows) == (4096, 1024, 256)
    assert (on_cpus.unit_rows, on_cpus.fragment_rows) == (64, 2 * on_cpus.batch_size)
    assert on_cpus.call_rows == on_cpus.batch_size


def test_pools_that_may_grow_begin_with_what_fits_and_stage_2_grows_with_stage_1() -> None:
    plan = plan_workers(PoolOptions(actors=4, max_actors=64), [Node(8, 2), Node(8, 2)], True)
    assert (plan.propose.size, plan.finish and plan.finish.size) == ("4 to 64", "4 to 64")
    check_capacity(plan.pools, [Node(8, 2), Node(8, 2)])
    plan = plan_workers(PoolOptions(max_actors=40), [Node(4, 0)], True)
    assert (plan.propose.size, plan.finish and plan.finish.size) == ("4 to 40", "2 to 20")
    plan = plan_workers(PoolOptions(actors=2, max_actors=8, finish_actors=3), [Node(8, 0)], True)
    assert plan.finish
    assert (plan.finish.size, plan.finish.largest) == ("3", 3)
    assert plan_workers(PoolOptions(max_actors=2), [Node(8, 0)], False).propose.most is None
    with pytest.raises(ConfigError, match="max_actors is 2, below actors 4"):
        PoolOptions(actors=4, max_actors=2)
