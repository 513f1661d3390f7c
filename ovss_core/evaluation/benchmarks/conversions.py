"""From the values that a data set stores to class indices, with -1 for pixels that do not count."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int, Integer

from ovss_core.evaluation.confusion import IGNORED

Labels = Int[np.ndarray, "height width"]
LabelConversion = Callable[[Integer[np.ndarray, "height width"]], Labels]

UNUSED_STUFF_IDS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Raw COCO-Stuff ids (category - 1) of the eleven COCO categories that were never annotated."""

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Cityscapes label ids of the nineteen evaluated classes, in the order of their train ids."""


def class_indices(values: Integer[np.ndarray, "height width"]) -> Labels:
    """Take stored values as class indices; the largest value of the type (255, or 65535 in 16 bits) is ignored.

    In 16 bits 255 is a class like any other.
    """
    labels = values.astype(np.int32)
    labels[values == (255 if values.dtype == np.uint8 else 65_535)] = IGNORED
    return labels


def indices_below(classes: int) -> LabelConversion:
    """Return `class_indices` for a vocabulary of that size: up to 255 classes, 255 is ignored in 16 bits too."""
    return class_indices_or_255 if classes <= 255 else class_indices


def class_indices_or_255(values: Integer[np.ndarray, "height width"]) -> Labels:
    """Take stored values as class indices, but ignore 255 whatever the type."""
    labels = class_indices(values)
    labels[values == 255] = IGNORED
    return labels


def reduce_zero_label(values: Integer[np.ndarray, "height width"]) -> Labels:
    """Ignore 0 and shift the others down by one; 255 stays ignored (ADE20K, VOC20, Context 59)."""
    labels = class_indices(values)
    labels[labels > 0] -= 1
    labels[values == 0] = IGNORED
    return labels


def stuff_ids(values: Integer[np.ndarray, "height width"]) -> Labels:
    """Map raw COCO-Stuff ids (0 to 181, eleven unused) to the 171 train ids, in the same order."""
    used = [value for value in range(182) if value not in UNUSED_STUFF_IDS]
    return _lookup(values, {value: index for index, value in enumerate(used)})


def cityscapes_ids(values: Integer[np.ndarray, "height width"]) -> Labels:
    """Map Cityscapes label ids to the 19 train ids; all others are ignored."""
    return _lookup(values, {value: index for index, value in enumerate(CITYSCAPES_IDS)})


def _lookup(values: np.ndarray, mapping: Mapping[int, int]) -> Labels:
    table = np.full(256, IGNORED, np.int32)
    table[list(mapping)] = list(mapping.values())
    labels: np.ndarray = table[np.minimum(values, 255)]
    return labels
