"""Everything that is measured on one image, and what it sums to over a split."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from ovss_core.evaluation.boundary import count_boundary
from ovss_core.evaluation.confusion import ConfusionCounts, count_confusion
from ovss_core.evaluation.vocabulary_metrics import PresenceCounts, count_presence, present_classes
from ovss_core.results import Segmentation
from ovss_core.vocabulary import Vocabulary


@dataclass(frozen=True)
class Measurement:
    """Counts of one image, or their sum over images.

    Attributes:
        confusion: Pixels by class.
        boundary: Pixels of the bands along edges by class.
        predicted_classes: Classes in the label map against those in the ground truth.
        purified_classes: Classes that redundancy purification kept (all with a map where it is off), before
            ambiguity is settled, likewise; None without FreeCP.
        oracle: Pixels by class where only present classes are offered; None if that was not asked for.
    """

    confusion: ConfusionCounts
    boundary: ConfusionCounts
    predicted_classes: PresenceCounts
    purified_classes: PresenceCounts | None = None
    oracle: ConfusionCounts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready counts; classes that do not occur are left out."""
        return {
            "confusion": self.confusion.to_rows(),
            "boundary": self.boundary.to_rows(),
            "predicted_classes": self.predicted_classes.to_dict(),
            "purified_classes": self.purified_classes.to_dict() if self.purified_classes else None,
            "oracle": self.oracle.to_rows() if self.oracle else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], classes: int) -> "Measurement":
        """Rebuild from `to_dict`."""
        purified, oracle = values["purified_classes"], values["oracle"]
        return cls(
            ConfusionCounts.from_rows(values["confusion"], classes),
            ConfusionCounts.from_rows(values["boundary"], classes),
            PresenceCounts.from_dict(values["predicted_classes"]),
            None if purified is None else PresenceCounts.from_dict(purified),
            None if oracle is None else ConfusionCounts.from_rows(oracle, classes),
        )

    def __add__(self, other: "Measurement") -> "Measurement":
        """Sum over images; a part that either lacks stays out."""
        sums: dict[str, Any] = {}
        for entry in fields(self):
            mine, theirs = getattr(self, entry.name), getattr(other, entry.name)
            sums[entry.name] = None if mine is None or theirs is None else mine + theirs
        return Measurement(**sums)


def measure(
    result: Segmentation,
    ground_truth: Int[np.ndarray, "height width"],
    vocabulary: Vocabulary,
    oracle: Integer[np.ndarray, "height width"] | None = None,
) -> Measurement:
    """Compare the labels of one image with its ground truth.

    Args:
        result: What the engine gave; classes kept by redundancy purification count as its vocabulary.
        ground_truth: Class indices at the image's own size, -1 where pixels do not count.
        oracle: Label map of the same image with only the present classes offered.

    Raises:
        ImageError: The sizes differ, or the ground truth has classes beyond the vocabulary.
    """
    classes, background = len(vocabulary), vocabulary.background_index
    confusion = count_confusion(result.label_map, ground_truth, classes)
    present = present_classes(ground_truth, background)
    predicted = frozenset(np.flatnonzero(confusion.predicted).tolist()) - {background}
    kept = {entry.index for entry in result.kept} - {background}
    purified = bool(result.kept or result.removed)
    return Measurement(
        confusion,
        count_boundary(result.label_map, ground_truth, classes),
        count_presence(predicted, present),
        count_presence(kept, present) if purified else None,
        None if oracle is None else count_confusion(oracle, ground_truth, classes),
    )


def summarize(total: Measurement, vocabulary: Vocabulary) -> dict[str, Any]:
    """Turn summed counts into scores in [0, 1]; what has no value (no pixel at all) is None.

    Returns:
        JSON-ready: ``miou``, ``pixel_accuracy``, ``boundary_miou``, presence scores, the oracle with its gap, and
        per class the counts with ``iou`` and ``boundary_iou``.
    """
    confusion, oracle = total.confusion, total.oracle
    summary: dict[str, Any] = {
        "miou": _number(confusion.mean_iou),
        "pixel_accuracy": _number(confusion.pixel_accuracy),
        "boundary_miou": _number(total.boundary.mean_iou),
        "classes_scored": int((confusion.union > 0).sum()),
        "predicted_classes": _presence(total.predicted_classes),
        "purified_vocabulary": _presence(total.purified_classes),
        "oracle": None,
        "classes": _class_rows(total, vocabulary),
    }
    if oracle is not None:
        summary["oracle"] = {
            "miou": _number(oracle.mean_iou),
            "pixel_accuracy": _number(oracle.pixel_accuracy),
            "gap": _number(oracle.mean_iou - confusion.mean_iou),
        }
    return summary


def doubts(total: Measurement, vocabulary: Vocabulary, pixels: int) -> list[str]:
    """Say in sentences why the scores may not mean what they seem to.

    Args:
        total: Counts of the split.
        pixels: All pixels of its reference masks, those that do not count included.
    """
    actual = total.confusion.actual
    ignored = max(0, pixels - int(actual.sum()))
    if not actual.any():
        why = "every pixel of every mask is ignored (255 is)" if pixels else "no image was measured"
        return [
            f"nothing could be measured: {why}; a mask's pixels hold their classes' positions in the vocabulary"
        ]
    absent = [name for name, count in zip(vocabulary.names, actual, strict=True) if count == 0]
    if not absent:
        return []
    shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
    sentences = [
        f"{len(absent)} of {len(vocabulary)} classes have no pixel in any mask ({shown}); where they are predicted, their "
        "IoU is 0 and counts in the mean: check that masks and vocabulary belong together"
    ]
    if ignored:
        sentences.append(
            f"{ignored:,} pixels ({100 * ignored / pixels:.1f} %) are ignored, as 255 is: if they are one of these classes, "
            f"store its position in the vocabulary instead ({absent[0]}: {vocabulary.names.index(absent[0])})"
        )
    return sentences


def _class_rows(total: Measurement, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    confusion, boundary, oracle = total.confusion, total.boundary, total.oracle
    return [
        {
            "index": index,
            "name": name,
            "intersection": int(confusion.intersection[index]),
            "union": int(confusion.union[index]),
            "predicted": int(confusion.predicted[index]),
            "actual": int(confusion.actual[index]),
            "iou": _number(confusion.iou[index]),
            "boundary_iou": _number(boundary.iou[index]),
            "oracle_iou": None if oracle is None else _number(oracle.iou[index]),
        }
        for index, name in enumerate(vocabulary.names)
    ]


def _presence(counts: PresenceCounts | None) -> dict[str, Any] | None:
    if counts is None:
        return None
    scores = {name: _number(getattr(counts, name)) for name in ("precision", "recall", "f1")}
    return {**scores, **counts.to_dict()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
