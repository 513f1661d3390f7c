"""One image's row of the table ``labels`` as plain values, field by field: what `label_column` is held against."""

from collections.abc import Sequence
from typing import Any

from ovss_core.results import ScoredClass, Segmentation
from pipelines.label.masks import encode_mask


def label_row(result: Segmentation) -> dict[str, Any]:
    """Return the columns of `LABELS` for one image that its labels decide."""
    height, width = result.label_map.shape
    present = sorted(result.present, key=lambda entry: -entry.pixels)
    sure = result.confidence
    return {
        "height": height,
        "width": width,
        "mask": encode_mask(result.label_map),
        "words": [entry.name for entry in present],
        "vocabulary": None,
        "present": [vars(entry) for entry in present],
        "score": None if sure is None else sure.score,
        "margin": None if sure is None else sure.margin,
        "sure": None if sure is None else sure.sure,
        "ignored": 0.0 if sure is None else sure.ignored,
        "confidence": None if sure is None or sure.margins is None else encode_mask(sure.margins),
        "kept": _listed(result.kept),
        "removed": _listed(result.removed),
        "groups": [
            {"classes": list(group.classes), "boxes": [vars(box) for box in group.boxes]}
            for group in result.groups
        ],
        **result.facts,
        "regions": [vars(entry) for entry in result.regions] or None,
    }


def _listed(classes: Sequence[ScoredClass]) -> list[dict[str, object]]:
    return [vars(entry) for entry in classes]
