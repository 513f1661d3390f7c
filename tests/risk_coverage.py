"""Whether a number that says how sure labels are predicts which are wrong: the area under the risk-coverage curve.

Keep the surest share of all items, the coverage, and their mean loss is the risk. The area under risk over all coverages
(AURC; Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Classifiers", ICLR 2019) is the mean
loss of everything where the number means nothing, and least where it orders items by their losses.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

_SUMMED = 64


@dataclass(frozen=True)
class RiskCoverage:
    """A curve's area beside what no order and the best order would give.

    Attributes:
        area: Area under the risk-coverage curve, in the loss's unit; smaller is better.
        chance: The same where order means nothing: the mean loss.
        best: The same where items are ordered by their losses.
    """

    area: float
    chance: float
    best: float

    @property
    def gain(self) -> float:
        """How far the order has come from chance, 0, to the best, 1; negative where it is worse than chance.

        nan where all losses are equal, so that no order is better than another.
        """
        room = self.chance - self.best
        return (self.chance - self.area) / room if room > 1e-12 else float("nan")


def risk_coverage(
    losses: Float[np.ndarray, " items"],
    confidence: Float[np.ndarray, " items"],
    counts: Int[np.ndarray, " items"] | None = None,
) -> RiskCoverage:
    """Measure how well a confidence orders items by their losses.

    Items of equal confidence come in no order: each has the mean loss of all of them, which is what any order gives
    on average.

    Args:
        losses: What each item costs, such as its share of wrong pixels.
        confidence: Larger is surer; of any scale, since only the order counts.
        counts: How many times each comes, such as the pixels that have one margin; None: once.

    Raises:
        ValueError: There is no item.

    Examples:
        >>> found = risk_coverage(np.array([0.0, 1.0, 0.0]), np.array([0.9, 0.1, 0.5]))
        >>> round(found.area, 4), round(found.chance, 4), found.gain
        (0.1111, 0.3333, 1.0)
    """
    times = np.ones(len(losses), np.int64) if counts is None else np.asarray(counts, np.int64)
    losses = np.asarray(losses, np.float64)
    if not times.sum():
        raise ValueError("no item to measure; give at least one loss")
    chance = float((losses * times).sum() / times.sum())
    return RiskCoverage(
        _area(losses, np.asarray(confidence, np.float64), times), chance, _area(losses, -losses, times)
    )


def _area(losses: np.ndarray, confidence: np.ndarray, times: np.ndarray) -> float:
    """Average the mean loss of the first 1, 2, ... items, group after group of equal confidence.

    Within a group of n items with mean loss m, behind w items that lost l together, these means are
    (l + m j) / (w + j) for j = 1 to n, whose sum is m n + (l - m w) (H(w + n) - H(w)), H being harmonic numbers.
    """
    values, group = np.unique(-confidence, return_inverse=True)
    count = np.bincount(group, times, len(values))
    lost = np.bincount(group, times * losses, len(values))
    there = count > 0
    count, lost = count[there], lost[there]
    mean, before, lost_before = lost / count, count.cumsum() - count, lost.cumsum() - lost
    steps = _harmonic(before + count) - _harmonic(before)
    return float((lost + (lost_before - mean * before) * steps).sum() / count.sum())


def _harmonic(numbers: Float[np.ndarray, " numbers"]) -> Float[np.ndarray, " numbers"]:
    """Return 1 + 1/2 + ... + 1/n; 0 for 0. Euler's series stands for the sum from 64 on, to within 1e-13."""
    first = np.concatenate([[0.0], (1 / np.arange(1, _SUMMED + 1)).cumsum()])
    large = np.maximum(numbers, _SUMMED)
    series = np.log(large) + np.euler_gamma + 1 / (2 * large) - 1 / (12 * large**2) + 1 / (120 * large**4)
    summed: np.ndarray = np.where(
        numbers < _SUMMED, first[np.minimum(numbers, _SUMMED).astype(np.int64)], series
    )
    return summed
