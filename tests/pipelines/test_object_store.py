from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.label.job import run_label
from pipelines.run.capacity import Node, Pool
from pipelines.run.events import shown_by
from pipelines.run.object_store import Flow, block_room, store_need, tightest_store
from pipelines.run.options import PoolOptions
from pipelines.run.pools import expected_flow, plan_workers
from tests.pipelines.kept_events import Kept
from tests.pipelines.test_label import job

ImageFolder = Callable[..., Path]
MB = 1_000_000
FLOW = Flow(unit_rows=100, call_rows=10, room=64 * MB, image_bytes=0.4 * MB, proposal_bytes=0.7 * MB)


def pools(first: int = 2, second: int = 1, num_cpus: float = 0.5) -> list[Pool]:
    return [Pool("propose", first, num_cpus), Pool("finish", second, num_cpus)]


@settings(deadline=None)
@given(
    st.integers(1, 4096),
    st.integers(1, 64),
    st.floats(1.0, 1e7),
    st.floats(1.0, 1e7),
    st.integers(1, 8),
    st.integers(0, 8),
)
def test_more_bytes_or_workers_never_need_a_smaller_store(
    unit: int, call: int, image: float, proposal: float, actors: int, more: int
) -> None:
    flow = Flow(max(unit, call), call, 128 << 20, image, proposal)
    need = store_need(flow, pools(actors, actors))
    assert need <= store_need(replace(flow, proposal_bytes=2 * proposal), pools(actors, actors))
    assert need <= store_need(flow, pools(actors, actors + more))
    assert need <= store_need(flow, pools(actors + more, actors))


def test_each_share_holds_what_is_made_until_the_next_stage_is_done_with_it() -> None:
    reading, first = FLOW.shares(pools(2, 1))
    assert reading == pytest.approx((1 + 1 + 2) * 40 * MB)
    assert first == pytest.approx((2 + 1) * 70 * MB + 64 * MB)  # blocks of 70 MB are cut to the room
    assert FLOW.shares(pools(2, 0)[:1]) == [reading]
    assert store_need(FLOW, pools(2, 1)) == pytest.approx(2 * 4 * first)
    assert store_need(FLOW, pools(2, 0)[:1]) == pytest.approx(2 * 3 * reading)


def test_what_many_readers_make_before_anybody_knows_how_large_it_is_goes_to_disk() -> None:
    [pool] = pools(1, 0)[:1]
    assert FLOW.first_read([pool], 100.5) == pytest.approx(400 * 40 * MB)
    found = tightest_store(FLOW, [pool], [Node(100.5, 0, 0, 10_000 * MB)])
    assert found.spilled == pytest.approx((400 * 40 - 0.8 * 10_000) * MB)
    assert "up to 8.0 GB may go to its disk" in str(found)
    assert not tightest_store(FLOW, [pool], [Node(2, 0, 0, 10_000 * MB)]).spilled


def test_the_tightest_store_is_that_of_a_node_with_workers() -> None:
    head, large, small = Node(0, 0, 0, 1 * MB), Node(4, 0, 0, 8000 * MB), Node(4, 0, 0, 100 * MB)
    found = tightest_store(FLOW, pools(), [head, large, small])
    assert (found.has, found.need) == (100 * MB, store_need(FLOW, pools(1, 1)))
    assert "--object-store-memory" in found.advice
    assert not tightest_store(FLOW, pools(), [head, large]).advice
    assert not tightest_store(FLOW, pools(), [replace(large, object_store=0.0)]).advice  # not known


def test_few_images_make_small_read_tasks_and_many_as_large_ones_as_the_plan_says() -> None:
    plan = plan_workers(PoolOptions(actors=2), [Node(16, 2)], True)
    assert expected_flow(plan, 100).unit_rows == plan.call_rows
    assert expected_flow(plan, 10**7).unit_rows == expected_flow(plan, 0).unit_rows == plan.unit_rows
    assert expected_flow(plan, 10**7).room == 128 << 20
    assert expected_flow(plan, 5000, whole=True).unit_rows == 5000  # as a table of one row group
    assert block_room(64) == 16 << 20
    assert block_room(4096, streamed=True) == 128 << 20


def test_a_run_says_before_its_workers_start_that_the_store_is_small(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    shown = Kept()
    with shown_by(shown):
        run_label(job(image_folder(3), tmp_path / "small"))
        quiet = [event.text for event in shown.events]
        workers = PoolOptions(actors=2, finish_actors=0, batch_size=256, torch_threads=1)
        run_label(job(image_folder(3, "more"), tmp_path / "large", pools=workers))
    told = [event.text for event in shown.events][len(quiet) :]
    assert not any("object store" in text for text in quiet)
    [warning] = [text for text in told if "object store" in text]
    assert "a node has 300 MB; " in warning
    assert told.index(warning) < next(place for place, text in enumerate(told) if "starting workers" in text)
