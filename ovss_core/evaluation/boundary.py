"""How well the edges of a mask agree: boundary IoU, with the counts summed over a split like any other.

Cheng, Girshick, Dollár, Berg and Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation" (CVPR 2021): IoU of the two bands of pixels that lie inside a mask and at most d from its contour,
d being 2 % of the image's diagonal.
"""

import math

import numpy as np
from jaxtyping import Bool, Integer

from ovss_core.evaluation.confusion import IGNORED, ConfusionCounts, check_ground_truth, count_where

BAND_SHARE = 0.02


def band_width(height: int, width: int) -> int:
    """Return d in pixels for an image of that size: 2 % of the diagonal, rounded, at least 1."""
    return max(1, round(BAND_SHARE * math.hypot(height, width)))


def boundary_band(
    label_map: Integer[np.ndarray, "height width"], distance: int
) -> Bool[np.ndarray, "height width"]:
    """Say of each pixel whether it is less than `distance` + 1 pixels away from another label or the border.

    Equals eroding each class's mask `distance` times by a 3 x 3 square, with nothing outside the picture, and
    taking what is lost; but for all classes at once, whatever the distance.
    """
    rows_uniform = _uniform_along_rows(label_map, distance)
    columns_uniform = _uniform_along_rows(label_map.T, distance).T
    rows_all_uniform = _count_in_window((~rows_uniform).T, distance).T == 0
    band: np.ndarray = ~(columns_uniform & rows_all_uniform)
    return band


def count_boundary(
    prediction: Integer[np.ndarray, "height width"],
    ground_truth: Integer[np.ndarray, "height width"],
    classes: int,
) -> ConfusionCounts:
    """Count the pixels of both bands by class.

    Ignored pixels bound the ground truth's regions, as any other label does, and count in neither band.

    Args:
        prediction: Class indices, all below `classes`.
        ground_truth: Class indices of the same size, `IGNORED` where nothing counts.
        classes: Number of classes of the vocabulary.

    Raises:
        ImageError: As `count_confusion`.
    """
    check_ground_truth(prediction, ground_truth, classes)
    distance = band_width(*ground_truth.shape)
    counted = ground_truth != IGNORED
    return count_where(
        prediction,
        ground_truth,
        counted & boundary_band(prediction, distance),
        counted & boundary_band(ground_truth, distance),
        classes,
    )


def _uniform_along_rows(label_map: np.ndarray, distance: int) -> Bool[np.ndarray, "height width"]:
    """Say whether the pixels up to `distance` to the left and right are inside and have one label."""
    height, width = label_map.shape
    changes = np.zeros((height, width), bool)
    changes[:, 1:] = label_map[:, 1:] != label_map[:, :-1]
    uniform = np.zeros((height, width), bool)
    if width > 2 * distance:
        before = np.cumsum(changes, 1, dtype=np.int32)
        uniform[:, distance : width - distance] = (
            before[:, 2 * distance :] == before[:, : width - 2 * distance]
        )
    return uniform


def _count_in_window(marks: np.ndarray, distance: int) -> Integer[np.ndarray, "height width"]:
    """Count the marks up to `distance` to the left and right of each pixel."""
    width = marks.shape[1]
    before = np.zeros((marks.shape[0], width + 1), np.int32)
    np.cumsum(marks, 1, out=before[:, 1:])
    position = np.arange(width)
    return (
        before[:, np.minimum(position + distance + 1, width)] - before[:, np.maximum(position - distance, 0)]
    )
