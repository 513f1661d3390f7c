"""Open-vocabulary semantic segmentation with CLIP, SFP feature purification and FreeCP class purification."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovss_core.api import OpenVocabSegmenter
    from ovss_core.config import SegmenterConfig
    from ovss_core.results import Segmentation
    from ovss_core.vocabulary import Vocabulary

__all__ = ["OpenVocabSegmenter", "Segmentation", "SegmenterConfig", "Vocabulary"]

_HOMES = {
    "OpenVocabSegmenter": "ovss_core.api",
    "Segmentation": "ovss_core.results",
    "SegmenterConfig": "ovss_core.config",
    "Vocabulary": "ovss_core.vocabulary",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that errors and settings do not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
