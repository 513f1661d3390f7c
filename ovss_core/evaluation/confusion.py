"""Pixel counts of one image, and the scores that counts summed over a whole split give."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer

from ovss_core.errors import ImageError

IGNORED = -1
"""Value of ground-truth pixels that do not count."""


@dataclass(frozen=True)
class ConfusionCounts:
    """Per class: pixels that are right, pixels labelled so, and pixels that are so; ignored pixels count nowhere.

    Attributes:
        intersection: Pixels of the class that got it.
        predicted: Pixels that got the class.
        actual: Pixels of the class.
    """

    intersection: Int[np.ndarray, " classes"]
    predicted: Int[np.ndarray, " classes"]
    actual: Int[np.ndarray, " classes"]

    @classmethod
    def zero(cls, classes: int) -> "ConfusionCounts":
        """Return the counts of no image at all."""
        return cls(*(np.zeros(classes, np.int64) for _ in range(3)))

    def __add__(self, other: "ConfusionCounts") -> "ConfusionCounts":
        """Sum over images; scores are taken once, from the sum."""
        return ConfusionCounts(
            self.intersection + other.intersection,
            self.predicted + other.predicted,
            self.actual + other.actual,
        )

    @property
    def union(self) -> Int[np.ndarray, " classes"]:
        """Pixels of the class or labelled so."""
        union: np.ndarray = self.predicted + self.actual - self.intersection
        return union

    @property
    def iou(self) -> Float[np.ndarray, " classes"]:
        """Intersection over union; nan for a class that neither ground truth nor prediction has."""
        return _ratio(self.intersection, self.union)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes with a union above zero, as mmsegmentation's nanmean; nan without any."""
        present = self.iou[self.union > 0]
        return float(present.mean()) if present.size else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of counted pixels that are right; nan without any."""
        total = int(self.actual.sum())
        return int(self.intersection.sum()) / total if total else float("nan")

    def to_rows(self) -> list[dict[str, int]]:
        """List the classes that occur: ``index, intersection, predicted, actual``."""
        return [
            {
                "index": int(index),
                "intersection": int(self.intersection[index]),
                "predicted": int(self.predicted[index]),
                "actual": int(self.actual[index]),
            }
            for index in np.flatnonzero(self.predicted + self.actual)
        ]

    @classmethod
    def from_rows(cls, rows: list[Mapping[str, Any]], classes: int) -> "ConfusionCounts":
        """Rebuild from `to_rows`."""
        counts = cls.zero(classes)
        for row in rows:
            counts.intersection[row["index"]] = row["intersection"]
            counts.predicted[row["index"]] = row["predicted"]
            counts.actual[row["index"]] = row["actual"]
        return counts


def count_confusion(
    prediction: Integer[np.ndarray, "height width"],
    ground_truth: Integer[np.ndarray, "height width"],
    classes: int,
) -> ConfusionCounts:
    """Count one image's pixels by class.

    Args:
        prediction: Class indices, all below `classes`.
        ground_truth: Class indices of the same size; `IGNORED` pixels count nowhere.
        classes: Number of classes of the vocabulary.

    Raises:
        ImageError: The sizes differ, or the ground truth names a class that the vocabulary does not have.

    Examples:
        >>> counts = count_confusion(np.array([[0, 1, 1]]), np.array([[0, 0, 1]]), classes=3)
        >>> counts.iou, counts.mean_iou, counts.pixel_accuracy
        (array([0.5, 0.5, nan]), 0.5, 0.6666666666666666)
    """
    check_ground_truth(prediction, ground_truth, classes)
    counted = ground_truth != IGNORED
    return count_where(prediction, ground_truth, counted, counted, classes)


def count_where(
    prediction: np.ndarray,
    ground_truth: np.ndarray,
    prediction_region: np.ndarray,
    ground_truth_region: np.ndarray,
    classes: int,
) -> ConfusionCounts:
    """Count the predicted and the actual pixels each in their own region, the right ones where both are."""
    right = prediction_region & ground_truth_region & (prediction == ground_truth)
    return ConfusionCounts(
        np.bincount(ground_truth[right], minlength=classes).astype(np.int64),
        np.bincount(prediction[prediction_region], minlength=classes).astype(np.int64),
        np.bincount(ground_truth[ground_truth_region], minlength=classes).astype(np.int64),
    )


def check_ground_truth(prediction: np.ndarray, ground_truth: np.ndarray, classes: int) -> None:
    """Refuse a ground truth of another size or with unknown classes."""
    if prediction.shape != ground_truth.shape:
        raise ImageError(
            f"the reference mask has {' x '.join(map(str, ground_truth.shape))} pixels, the image "
            f"{' x '.join(map(str, prediction.shape))}; they must have one size"
        )
    if ground_truth.size and ground_truth.max() >= classes:
        raise ImageError(
            f"the reference mask has the value {int(ground_truth.max())}, the vocabulary only classes 0 to "
            f"{classes - 1}; check that masks and vocabulary belong together"
        )


def _ratio(part: np.ndarray, whole: np.ndarray) -> Float[np.ndarray, " classes"]:
    ratio: np.ndarray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio
