import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import ModuleType

import cv2
import numpy as np
import pytest

from pipelines.benchmark import host_costs
from pipelines.benchmark.host_costs import RELEASING, HostCosts, locked_seconds, measure_steps
from pipelines.benchmark.job_costs import Spending

BURN_S = 0.4
BURN = f"import time\nwhile time.process_time() < {BURN_S}: pass"


def test_each_step_of_the_host_costs_something_and_the_sum_is_theirs() -> None:
    costs = measure_steps(HostCosts(count=4, classes=12, kept=4, crops=1, repeats=1))
    steps = {name: cost for name, cost in costs.items() if name not in ("all", "lock", "proposal_kb")}
    assert {"decode", "resize", "masks to PNG", "label rows to Arrow"} <= steps.keys()
    assert all(costs[name] > 0 for name in ("decode", "resize", "masks to PNG"))
    assert costs["all"] == pytest.approx(sum(steps.values()))
    assert costs["proposal_kb"] > 4 * 112 * 112 * 3 / 4 / 1000  # its one crop alone


def spin() -> None:
    for _ in range(20_000):
        pass


def thread_seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def test_python_code_counts_as_locked_whole_and_the_named_calls_but_for_their_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = bytes(1 << 24)
    monkeypatch.setattr(host_costs, "RELEASING", [(hashlib, "sha256", (b"",))])
    spinning = min(thread_seconds(spin) for _ in range(20))
    hashing = min(thread_seconds(lambda: hashlib.sha256(data)) for _ in range(20))

    def both() -> None:
        spin()
        hashlib.sha256(data)

    assert 5 * spinning < hashing
    assert 0.5 * spinning < locked_seconds(both, 20) < 2 * spinning
    assert hashlib.sha256(data).digest_size == 32  # the call is put back


@pytest.mark.parametrize("function", RELEASING, ids=lambda function: function[1])
def test_another_thread_runs_python_during_each_call_that_is_not_counted_as_locked(
    function: tuple[ModuleType, str, Sequence[object]],
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4000, 4000, 3), np.uint8)
    encoded = cv2.imencode(".jpg", picture)[1].tobytes()
    arguments: dict[str, Sequence[object]] = {
        "resize": (picture, (6000, 6000)),
        "concatenate": ([picture] * 4,),
        "count_scans": (bytes(1 << 26),),
        "decode_jpeg": (encoded, "RGB"),
    }
    seen, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        start = time.perf_counter()
        getattr(*function[:2])(*arguments[function[1]])
        end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    inside = [moment for moment in seen if start + 0.1 * (end - start) < moment < end - 0.1 * (end - start)]
    assert inside


def test_processor_time_of_a_process_that_ends_later_is_counted_by_its_kind() -> None:
    with Spending() as spending:
        subprocess.run([sys.executable, "-c", BURN + "\nimport time; time.sleep(1.3)"], check=True)
    assert 0.75 * BURN_S < spending.by_kind["other"] < 4 * BURN_S
    assert spending.by_kind["driver"] < BURN_S
