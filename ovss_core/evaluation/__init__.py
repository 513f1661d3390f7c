"""Measuring label maps against reference masks."""

from ovss_core.evaluation.boundary import count_boundary
from ovss_core.evaluation.confusion import IGNORED, ConfusionCounts, count_confusion
from ovss_core.evaluation.reference import decode_labels
from ovss_core.evaluation.vocabulary_metrics import PresenceCounts, count_presence, present_classes

__all__ = [
    "IGNORED",
    "ConfusionCounts",
    "PresenceCounts",
    "count_boundary",
    "count_confusion",
    "count_presence",
    "decode_labels",
    "present_classes",
]
