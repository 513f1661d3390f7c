from itertools import pairwise, permutations

import numpy as np
import pytest

from tests.risk_coverage import risk_coverage


def _slow_area(losses: list[float], order: tuple[int, ...]) -> float:
    """Average the mean loss of the first 1, 2, ... items of an order."""
    return sum(
        sum(losses[item] for item in order[: count + 1]) / (count + 1) for count in range(len(order))
    ) / len(order)


@pytest.mark.parametrize("confidence", [[5, 4, 3, 2, 1], [1, 2, 2, 3, 1], [0, 0, 0, 0, 0], [2, 9, 9, 9, 1]])
def test_the_area_is_the_mean_over_all_orders_that_the_confidence_leaves_open(confidence: list[int]) -> None:
    losses = [0.1, 0.9, 0.4, 0.0, 0.6]
    open_orders = [
        order
        for order in permutations(range(5))
        if all(confidence[a] >= confidence[b] for a, b in pairwise(order))
    ]
    found = risk_coverage(np.array(losses), np.array(confidence, float))
    assert found.area == pytest.approx(np.mean([_slow_area(losses, order) for order in open_orders]))
    assert found.chance == pytest.approx(np.mean(losses))
    assert found.best == pytest.approx(min(_slow_area(losses, order) for order in permutations(range(5))))


def test_counts_are_items_that_come_several_times() -> None:
    losses, confidence = np.array([0.2, 0.7, 0.0, 1.0]), np.array([0.5, 0.1, 0.9, 0.5])
    counts = np.array([3, 1000, 40, 0])
    repeated = risk_coverage(np.repeat(losses, counts), np.repeat(confidence, counts))
    counted = risk_coverage(losses, confidence, counts)
    slow = _slow_area(
        np.repeat(losses, counts)[np.argsort(-np.repeat(confidence, counts), kind="stable")].tolist(),
        tuple(range(1043)),
    )
    assert counted.area == pytest.approx(repeated.area, abs=1e-12) == pytest.approx(slow, abs=1e-9)
    assert counted.best == pytest.approx(repeated.best, abs=1e-12)
    assert counted.chance == pytest.approx(repeated.chance, abs=1e-12)


def test_only_the_order_of_confidence_counts_and_gain_runs_from_chance_to_the_best() -> None:
    rng = np.random.default_rng(0)
    losses = rng.random(50)
    confidence = -losses + 0.3 * rng.random(50)
    one, other = risk_coverage(losses, confidence), risk_coverage(losses, np.exp(7 * confidence))
    assert one == other
    assert 0 < one.gain < 1
    assert risk_coverage(losses, -losses).gain == pytest.approx(1)
    assert risk_coverage(losses, np.zeros(50)).gain == pytest.approx(0)
    assert risk_coverage(losses, losses).gain < 0
    assert np.isnan(risk_coverage(np.ones(3), np.arange(3.0)).gain)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="no item to measure"):
        risk_coverage(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="no item to measure"):
        risk_coverage(np.ones(1), np.ones(1), np.zeros(1, np.int64))
