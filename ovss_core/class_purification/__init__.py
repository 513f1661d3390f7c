"""FreeCP: which classes of a vocabulary are in the image, and which of several owns a region."""

from ovss_core.class_purification.batch import PurificationInput
from ovss_core.class_purification.purifier import BackgroundPolicy, ClassPurifier
from ovss_core.class_purification.thresholds import load_distractors
from ovss_core.class_purification.winners import (
    BoxEdit,
    GroupProposal,
    ImagePurification,
    apply_box_edits,
    is_degenerate,
    pick_winners,
    resolve_groups,
)

__all__ = [
    "BackgroundPolicy",
    "BoxEdit",
    "ClassPurifier",
    "GroupProposal",
    "ImagePurification",
    "PurificationInput",
    "apply_box_edits",
    "is_degenerate",
    "load_distractors",
    "pick_winners",
    "resolve_groups",
]
