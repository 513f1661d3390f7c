"""The band equals erosion by loops, class by class; the counts follow the published definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovss_core.evaluation.boundary import band_width, boundary_band, count_boundary
from ovss_core.evaluation.confusion import IGNORED


def eroded(mask: np.ndarray, distance: int) -> np.ndarray:
    """Erode by a 3 x 3 square, `distance` times, one pixel at a time; outside the picture nothing is set."""
    for _ in range(distance):
        smaller = np.zeros_like(mask)
        for y in range(1, mask.shape[0] - 1):
            for x in range(1, mask.shape[1] - 1):
                smaller[y, x] = mask[y - 1 : y + 2, x - 1 : x + 2].all()
        mask = smaller
    return mask


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_the_band_is_what_eroding_each_class_takes_away(
    seed: int, height: int, width: int, distance: int
) -> None:
    rng = np.random.default_rng(seed)
    label_map = rng.integers(0, 3, (3, 3)).repeat(4, 0).repeat(4, 1)[:height, :width]

    band = boundary_band(label_map, distance)

    expected = np.zeros((height, width), bool)
    for index in range(3):
        mask = label_map == index
        expected |= mask & ~eroded(mask, distance)
    assert np.array_equal(band, expected)


def test_boundary_counts_equal_erosion_and_set_operations_class_by_class() -> None:
    rng = np.random.default_rng(8)
    ground_truth = rng.integers(IGNORED, 3, (5, 6)).repeat(16, 0).repeat(16, 1).astype(np.int32)
    prediction = np.roll(np.maximum(ground_truth, 0), (1, 2), (0, 1)).astype(np.uint8)
    distance = band_width(80, 96)
    assert distance == 2

    counts = count_boundary(prediction, ground_truth, 3)

    counted = ground_truth != IGNORED
    for index in range(3):
        actual, predicted = ground_truth == index, prediction == index
        actual_band = actual & ~eroded(actual, distance) & counted
        predicted_band = predicted & ~eroded(predicted, distance) & counted
        assert counts.actual[index] == actual_band.sum()
        assert counts.predicted[index] == predicted_band.sum()
        assert counts.intersection[index] == (actual_band & predicted_band).sum()


def test_a_perfect_mask_has_boundary_iou_one() -> None:
    label_map = np.zeros((60, 80), np.int32)
    label_map[20:40, 30:60] = 1

    assert count_boundary(label_map, label_map, 2).mean_iou == 1.0


def test_a_shifted_edge_costs_more_at_the_boundary_than_in_the_whole_mask() -> None:
    label_map = np.zeros((100, 100), np.int32)
    label_map[:, 50:] = 1
    shifted = np.roll(label_map, 2, 1)
    shifted[:, :2] = 0

    assert count_boundary(shifted, label_map, 2).mean_iou < 0.9 < 0.96


@pytest.mark.parametrize(("height", "width", "pixels"), [(300, 400, 10), (1, 1, 1), (375, 500, 12)])
def test_the_band_is_two_percent_of_the_diagonal(height: int, width: int, pixels: int) -> None:
    assert band_width(height, width) == pixels
