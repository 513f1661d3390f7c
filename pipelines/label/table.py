"""One labelled image as a row of the table ``labels``; free of torch, so that storing workers start fast."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ovss_core.config import ConfidenceDetail
from ovss_core.results import ScoredClass, ScoredClasses, Segmentation, ignore_index
from ovss_core.vocabulary import Vocabulary
from pipelines.label.masks import encode_mask
from pipelines.run.schema import IMAGE, LABELS
from pipelines.run.sink import OutputTable

CLASSES, IGNORE = b"ovss_classes", b"ovss_ignore_index"
"""Keys in a file's metadata: the classes' names by their value in the mask, as a JSON list; the value of no label."""


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
    }


def _listed(classes: Sequence[ScoredClass]) -> list[dict[str, object]]:
    return classes.to_dicts() if isinstance(classes, ScoredClasses) else [vars(entry) for entry in classes]


def summarize_labels(table: pa.Table) -> dict[str, Any]:
    """Count images and pixels by class over rows of `LABELS`."""
    classes: dict[str, dict[str, int]] = {}
    pixels = 0
    for present in table["present"].to_pylist():
        for entry in present:
            counts = classes.setdefault(entry["name"], {"images": 0, "pixels": 0})
            counts["images"] += 1
            counts["pixels"] += entry["pixels"]
            pixels += entry["pixels"]
    return {"pixels": pixels, "classes": classes}


def label_table(
    vocabulary: Vocabulary, confidence: ConfidenceDetail = "image", embed_images: bool = False
) -> OutputTable:
    """Return the table that a run writes: `LABELS` without the columns that are not asked for.

    Args:
        vocabulary: Its names go into every file's metadata.
        confidence: Whether each pixel has one.
        embed_images: Store the images' own bytes.
    """
    left_out = {"confidence"} if confidence != "pixel" else set()
    if not embed_images:
        left_out.add(IMAGE)
    metadata = {
        **LABELS.metadata,
        CLASSES: json.dumps(vocabulary.names, ensure_ascii=False).encode(),
        IGNORE: str(ignore_index(len(vocabulary))).encode(),
    }
    schema = pa.schema([entry for entry in LABELS if entry.name not in left_out], metadata)
    return OutputTable("labels", schema, summarize_labels)
