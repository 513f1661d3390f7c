"""One labelled image as a row of the table ``labels``; free of torch, so that storing workers start fast."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ovss_core.results import ScoredClass, ScoredClasses, Segmentation
from pipelines.label.masks import encode_mask
from pipelines.run.schema import LABELS
from pipelines.run.sink import OutputTable


def label_row(result: Segmentation) -> dict[str, Any]:
    """Return the columns of `LABELS` for one image, without its names."""
    height, width = result.label_map.shape
    present = sorted(result.present, key=lambda entry: -entry.pixels)
    return {
        "height": height,
        "width": width,
        "mask": encode_mask(result.label_map),
        "present": [vars(entry) for entry in present],
        "kept": _listed(result.kept),
        "removed": _listed(result.removed),
        "groups": [
            {"classes": list(group.classes), "boxes": [vars(box) for box in group.boxes]}
            for group in result.groups
        ],
        "regions": [vars(entry) for entry in result.regions] or None,
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


LABEL_TABLE = OutputTable("labels", LABELS, summarize_labels)
