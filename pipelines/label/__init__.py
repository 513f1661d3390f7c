"""Labelling: the job, its stages in actors, its table and its pictures.

What sits in pipelines of one's own is imported from here; with it torch, so only when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.label.between import ProposalOutline, set_aside
    from pipelines.label.recipe import StageRecipe, encode_vocabulary
    from pipelines.label.stages import FinishStage, ProposeStage, SegmentStage

_HOMES = {
    "FinishStage": "stages",
    "ProposalOutline": "between",
    "ProposeStage": "stages",
    "SegmentStage": "stages",
    "StageRecipe": "recipe",
    "encode_vocabulary": "recipe",
    "set_aside": "between",
}

__all__ = [
    "FinishStage",
    "ProposalOutline",
    "ProposeStage",
    "SegmentStage",
    "StageRecipe",
    "encode_vocabulary",
    "set_aside",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
