import subprocess
import sys

import pytest

from pipelines.benchmark.host_costs import HostCosts, measure_steps
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


def test_processor_time_of_a_process_that_ends_later_is_counted_by_its_kind() -> None:
    with Spending() as spending:
        subprocess.run([sys.executable, "-c", BURN + "\nimport time; time.sleep(1.3)"], check=True)
    assert 0.75 * BURN_S < spending.by_kind["other"] < 4 * BURN_S
    assert spending.by_kind["driver"] < BURN_S
