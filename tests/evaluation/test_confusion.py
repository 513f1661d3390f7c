"""Counts equal a loop over pixels, sum over images, and give mmsegmentation's scores."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovss_core.errors import ImageError
from ovss_core.evaluation.confusion import IGNORED, ConfusionCounts, count_confusion


def loop_counts(prediction: np.ndarray, ground_truth: np.ndarray, classes: int) -> list[tuple[int, int, int]]:
    """Intersection, predicted and actual pixels of each class, one pixel at a time."""
    counts = [[0, 0, 0] for _ in range(classes)]
    for row in range(ground_truth.shape[0]):
        for column in range(ground_truth.shape[1]):
            said, is_ = int(prediction[row, column]), int(ground_truth[row, column])
            if is_ == IGNORED:
                continue
            counts[said][1] += 1
            counts[is_][2] += 1
            if said == is_:
                counts[is_][0] += 1
    return [(row[0], row[1], row[2]) for row in counts]


def as_tuples(counts: ConfusionCounts) -> list[tuple[int, int, int]]:
    return list(
        zip(
            counts.intersection.tolist(),
            counts.predicted.tolist(),
            counts.actual.tolist(),
            strict=True,
        )
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_counts_equal_a_loop_over_pixels(seed: int, height: int, width: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, classes, (height, width)).astype(np.uint8)
    ground_truth = rng.integers(IGNORED, classes, (height, width)).astype(np.int32)

    counts = count_confusion(prediction, ground_truth, classes)

    assert as_tuples(counts) == loop_counts(prediction, ground_truth, classes)


def test_scores_of_a_hand_made_image() -> None:
    ground_truth = np.array([[0, 0, 1, 1], [0, 0, 1, IGNORED]], np.int32)
    prediction = np.array([[0, 1, 1, 1], [0, 0, 2, 2]], np.uint8)

    counts = count_confusion(prediction, ground_truth, 4)

    assert counts.intersection.tolist() == [3, 2, 0, 0]
    assert counts.union.tolist() == [4, 4, 1, 0]
    assert counts.iou[:3].tolist() == [0.75, 0.5, 0.0]
    assert math.isnan(counts.iou[3])
    assert counts.mean_iou == pytest.approx((0.75 + 0.5 + 0.0) / 3)
    assert counts.pixel_accuracy == pytest.approx(5 / 7)


def test_scores_come_from_the_sum_of_the_images_and_not_from_their_mean() -> None:
    large = count_confusion(np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.int32), 2)
    small = count_confusion(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.int32), 2)

    total = large + small

    assert total.iou.tolist() == [100 / 101, 0.0]
    assert total.mean_iou == pytest.approx(50 / 101)


def test_permuting_the_classes_permutes_the_counts() -> None:
    rng = np.random.default_rng(4)
    prediction, ground_truth = rng.integers(0, 5, (2, 8, 9)).astype(np.int32)
    order = rng.permutation(5)

    counts = count_confusion(prediction, ground_truth, 5)
    permuted = count_confusion(order[prediction], order[ground_truth].astype(np.int32), 5)

    assert permuted.intersection[order].tolist() == counts.intersection.tolist()
    assert permuted.union[order].tolist() == counts.union.tolist()


def test_an_image_without_a_counted_pixel_adds_nothing_and_has_no_score() -> None:
    counts = count_confusion(np.zeros((3, 3), np.uint8), np.full((3, 3), IGNORED, np.int32), 2)

    assert not counts.union.any()
    assert math.isnan(counts.mean_iou)
    assert math.isnan(counts.pixel_accuracy)


def test_rows_hold_only_classes_that_occur_and_rebuild_the_counts() -> None:
    prediction = np.array([[3, 3], [0, 3]], np.uint8)
    ground_truth = np.array([[3, 1], [1, 3]], np.int32)
    counts = count_confusion(prediction, ground_truth, 6)

    rows = counts.to_rows()

    assert [row["index"] for row in rows] == [0, 1, 3]
    assert as_tuples(ConfusionCounts.from_rows(list(rows), 6)) == as_tuples(counts)


def test_a_mask_of_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(ImageError, match="2 x 3 pixels, the image 3 x 2"):
        count_confusion(np.zeros((3, 2), np.uint8), np.zeros((2, 3), np.int32), 2)


def test_a_class_that_the_vocabulary_lacks_is_refused_with_its_number() -> None:
    with pytest.raises(ImageError, match="the value 7"):
        count_confusion(np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.int32), 3)
