"""Precision, recall and F1 of the classes kept, by hand values."""

import math

import numpy as np
import pytest

from ovss_core.evaluation.confusion import IGNORED
from ovss_core.evaluation.vocabulary_metrics import PresenceCounts, count_presence, present_classes


def test_kept_and_present_classes_are_compared_as_sets() -> None:
    assert count_presence({1, 2, 5}, {2, 3}) == PresenceCounts(hits=1, false_alarms=2, misses=1)


def test_scores_follow_their_definitions() -> None:
    total = PresenceCounts(3, 1, 2) + PresenceCounts(1, 0, 0)

    assert total.precision == pytest.approx(4 / 5)
    assert total.recall == pytest.approx(4 / 6)
    assert total.f1 == pytest.approx(2 * 0.8 * (4 / 6) / (0.8 + 4 / 6))


def test_nothing_kept_and_nothing_present_has_no_score() -> None:
    assert math.isnan(PresenceCounts().precision)
    assert math.isnan(PresenceCounts().recall)
    assert math.isnan(PresenceCounts().f1)


def test_present_classes_leave_out_the_background_and_ignored_pixels() -> None:
    ground_truth = np.array([[0, 4], [IGNORED, 2]], np.int32)

    assert present_classes(ground_truth, 0) == {2, 4}
    assert present_classes(ground_truth, None) == {0, 2, 4}


def test_counts_survive_the_way_through_a_table() -> None:
    counts = PresenceCounts(3, 1, 2)

    assert PresenceCounts.from_dict(counts.to_dict()) == counts
