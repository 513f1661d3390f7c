"""Labelled images as rows of the table ``labels``; free of torch, so that storing workers start fast."""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from ovss_core.config import ConfidenceDetail
from ovss_core.engine.facts import FACTS
from ovss_core.results import PresentClass, ScoredClass, ScoredClasses, Segmentation, ignore_index
from ovss_core.vocabulary import Vocabulary
from pipelines.label.word_use import OwnWords
from pipelines.run.schema import IMAGE, LABELS, result_type
from pipelines.run.sink import OutputTable
from pipelines.sources.carried import CarriedColumns

CLASSES, IGNORE = b"ovss_classes", b"ovss_ignore_index"
"""Keys in a file's metadata: the classes' names by their value in the mask, as a JSON list; the value of no label."""
COMMON = b"ovss_common_classes"
"""The key in place of the first where each row has its own `VOCABULARY`: names of the common vocabulary's classes."""
VOCABULARY = "vocabulary"
"""The column of the words that a row's image was offered."""
HISTOGRAMS, STEPS = ("margin", "disagreement"), 20
"""Columns of shares in [0, 1] whose images are counted in so many steps."""


def label_column(
    results: Sequence[Segmentation],
    masks: Sequence[bytes],
    margins: Sequence[bytes | None] | None = None,
    offered: Sequence[str] | None = None,
) -> pa.StructArray:
    """Return the values of the column ``result`` for a batch of images, in the order of the images.

    They are made of flat arrays, without an object for every class that is listed: with large vocabularies an image
    lists thousands.

    Args:
        results: The images' labels.
        masks: Their label maps by `encode_mask`.
        margins: Their pixels' margins by `encode_mask`, where they have some; None where none has.
        offered: The words that these images were offered, where images bring words along.
    """
    groups = [group for result in results for group in result.groups]
    boxes = [box for group in groups for box in group.boxes]
    present = [sorted(result.present, key=_fewest_last) for result in results]
    counts = [len(entries) for entries in present]
    sure = [result.confidence for result in results]
    kind = result_type(LABELS)
    columns = {
        "height": pa.array([result.label_map.shape[0] for result in results], pa.int32()),
        "width": pa.array([result.label_map.shape[1] for result in results], pa.int32()),
        "mask": pa.array(masks, pa.binary()),
        "words": _lists(
            counts, pa.array([entry.name for entries in present for entry in entries], pa.string())
        ),
        "vocabulary": pa.array([offered] * len(results), kind.field("vocabulary").type),
        "present": _lists(
            counts,
            _fields(
                [entry for entries in present for entry in entries], kind.field("present").type.value_type
            ),
        ),
        "score": pa.array([entry and entry.score for entry in sure], pa.float32()),
        "margin": pa.array([entry and entry.margin for entry in sure], pa.float32()),
        "sure": pa.array([entry and entry.sure for entry in sure], pa.float32()),
        "ignored": pa.array([entry.ignored if entry else 0.0 for entry in sure], pa.float32()),
        "confidence": pa.array([None] * len(results) if margins is None else margins, pa.binary()),
        "kept": _scored([result.kept for result in results]),
        "removed": _scored([result.removed for result in results]),
        "groups": _lists(
            [len(result.groups) for result in results],
            pa.StructArray.from_arrays(
                [
                    _lists(
                        [len(group.classes) for group in groups],
                        pa.array(chain.from_iterable(group.classes for group in groups), pa.int32()),
                    ),
                    _lists([len(group.boxes) for group in groups], _fields(boxes, _BOX)),
                ],
                fields=list(_GROUP),
            ),
        ),
        **{
            name: pa.array([result.facts.get(name) for result in results], kind.field(name).type)
            for name in _FACTS
        },
        "regions": _lists(
            [len(result.regions) for result in results],
            _fields([entry for result in results for entry in result.regions], _REGION),
            missing=[not result.regions for result in results],
        ),
    }
    return pa.StructArray.from_arrays(
        [columns[field.name].cast(field.type) for field in kind], fields=list(kind)
    )


_FACTS = [fact.name for fact in FACTS]
_GROUP = LABELS.field("groups").type.value_type
_BOX = _GROUP.field("boxes").type.value_type
_REGION = LABELS.field("regions").type.value_type
_SCORED = LABELS.field("kept").type.value_type


def _fewest_last(entry: PresentClass) -> int:
    return -entry.pixels


def _fields(entries: Sequence[Any], kind: pa.StructType) -> pa.StructArray:
    """Turn objects into structs of their attributes."""
    arrays = [pa.array([getattr(entry, field.name) for entry in entries], field.type) for field in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _scored(lists: Sequence[Sequence[ScoredClass]]) -> pa.ListArray:
    """Turn lists of scored classes into a column; their names are looked up in the vocabulary, where they have one."""
    filled = [entries for entries in lists if len(entries)]
    flat = [entries for entries in filled if isinstance(entries, ScoredClasses)]
    if not flat or len(flat) < len(filled) or any(entries.names is not flat[0].names for entries in flat):
        values = _fields([entry for entries in lists for entry in entries], _SCORED)
    else:
        index = pa.array(np.concatenate([entries.indices for entries in flat]), pa.int32())
        score = pa.array(np.concatenate([entries.scores for entries in flat]), pa.float32())
        name = pa.array(flat[0].names, pa.string()).take(index)
        values = pa.StructArray.from_arrays([index, name, score], fields=list(_SCORED))
    return _lists([len(entries) for entries in lists], values)


def _lists(counts: Sequence[int], values: pa.Array, missing: Sequence[bool] | None = None) -> pa.ListArray:
    """Put values that follow one another into lists of the given lengths; where one is `missing` it is null."""
    offsets, mask = pa.array(np.cumsum([0, *counts]), pa.int32()), None
    if missing is not None:
        mask = pa.array(missing, pa.bool_())
    return pa.ListArray.from_arrays(offsets, values, mask=mask)


def summarize_labels(table: pa.Table) -> dict[str, Any]:
    """Count what `pipelines.label.report` shows over rows of `LABELS`; columns that are missing are not counted.

    Returns:
        Pixels; by class the images and pixels that have it; by class the images that kept it, and how many images were
        purified at all (each of them removed what it did not keep); and for each column of `HISTOGRAMS` the images by
        the number of their step.
    """
    classes: dict[str, dict[str, int]] = {}
    pixels = 0
    for present in table["present"].to_pylist():
        for entry in present:
            counts = classes.setdefault(entry["name"], {"images": 0, "pixels": 0})
            counts["images"] += 1
            counts["pixels"] += entry["pixels"]
            pixels += entry["pixels"]
    found: dict[str, Any] = {"pixels": pixels, "classes": classes}
    if {"kept", "removed"} <= set(table.column_names):
        listed = pc.add(pc.list_value_length(table["kept"]), pc.list_value_length(table["removed"]))
        names = pc.struct_field(pc.list_flatten(table["kept"]), "name")
        kept = {entry["values"]: entry["counts"] for entry in pc.value_counts(names).to_pylist()}
        found |= {"purified": pc.sum(pc.greater(listed, 0)).as_py() or 0, "kept": kept}
    for name in HISTOGRAMS:
        if name in table.column_names:
            steps = _steps(table[name].drop_null().to_numpy())
            found[name] = {str(step): int(count) for step, count in enumerate(steps) if count}
    return found


def _steps(shares: Float[np.ndarray, " images"]) -> Int[np.ndarray, " steps"]:
    steps = np.minimum((np.asarray(shares, np.float64) * STEPS).astype(np.int64), STEPS - 1)
    return np.bincount(steps, minlength=STEPS)


def label_table(
    vocabulary: Vocabulary,
    confidence: ConfidenceDetail = "image",
    embed_images: bool = False,
    carried: CarriedColumns | None = None,
    own_words: OwnWords | None = None,
) -> OutputTable:
    """Return the table that a run writes: `LABELS` without the columns that are not asked for.

    Args:
        vocabulary: Its names go into every file's metadata.
        confidence: Whether each pixel has one.
        embed_images: Store the images' own bytes.
        carried: Columns of the source.
        own_words: How images' own words are used, where they bring some along.
    """
    left_out = {"confidence"} if confidence != "pixel" else set()
    if own_words is None:
        left_out.add(VOCABULARY)
    if not embed_images:
        left_out.add(IMAGE)
    common = vocabulary.names if own_words is None else vocabulary.names[: own_words.common]
    ignore = ignore_index(len(vocabulary)) if own_words is None else own_words.ignore_index
    metadata = {
        **LABELS.metadata,
        CLASSES if own_words is None else COMMON: json.dumps(common, ensure_ascii=False).encode(),
        IGNORE: str(ignore).encode(),
    }
    kept = [entry for entry in LABELS if entry.name not in left_out]
    schema = pa.schema([*kept, *(carried.fields if carried else ())], metadata)
    return OutputTable("labels", schema, summarize_labels, carried)
