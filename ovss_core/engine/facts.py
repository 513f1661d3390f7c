"""What stage 1 knows about an image besides its labels: one entry a fact, each a column of the output.

An entry is all that such a column needs. The engine computes the facts of a wave beside its proposals; they come to CPU
memory in the same copy, cross from process to process in the proposals' rows, lie in `ovss_core.results.Segmentation.facts`,
and are columns of the table ``labels`` (`pipelines.run.schema.LABELS`) under their names, with their meanings in its
documentation. Nothing here needs torch: storing workers read this table, too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from ovss_core.class_purification.purifier import Purified
    from ovss_core.engine.waves import Encoded, Wave


@dataclass(frozen=True)
class Fact:
    """A number that stage 1 computes for each image.

    Attributes:
        name: Of the column.
        meaning: What the column's documentation says.
        dtype: Type of the number; one that is not a number (nan) is stored as null.
        of: Computes it for all images of a wave at once, on the device: from the wave, its encoded windows, and what
            purification decided (None where there is none). Returns one value an image, or None where the settings
            give none, which is null in every row.
    """

    name: str
    meaning: str
    dtype: type[np.integer[Any] | np.floating[Any]]
    of: "Callable[[Wave, Encoded, Purified | None], Tensor | None]"


FACTS: tuple[Fact, ...] = (
    Fact(
        "threshold",
        "score that a class had to exceed to be kept; where windows decide, the lowest of theirs; null without "
        "purification",
        np.float32,
        lambda wave, encoded, purified: None if purified is None else purified.thresholds,
    ),
    Fact(
        "disagreement",
        "with several hosts: share of the image on which they do not all prefer one class, of those that purification "
        "kept, in [0, 1]; null with one host",
        np.float32,
        lambda wave, encoded, purified: encoded.disagreement,
    ),
)
_PREFIX = "fact_"
FACT_COLUMNS: dict[str, type[np.generic]] = {_PREFIX + fact.name: fact.dtype for fact in FACTS}
"""The columns of a proposal's row that hold facts, and their numbers."""


def facts_of_wave(wave: "Wave", encoded: "Encoded", purified: "Purified | None") -> "dict[str, Tensor]":
    """Compute the facts of a wave's images, by name; those that the settings do not give are left out."""
    found = ((fact.name, fact.of(wave, encoded, purified)) for fact in FACTS)
    return {name: values for name, values in found if values is not None}


def facts_of_image(facts: Mapping[str, np.ndarray], image: int) -> dict[str, float | int | None]:
    """Return every fact of one image of a batch as plain numbers."""
    return {
        fact.name: _plain(fact.dtype(facts[fact.name][image])) if fact.name in facts else None
        for fact in FACTS
    }


def facts_to_columns(facts: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Return the facts of a batch as columns of a proposal's row, each image's apart."""
    return {_PREFIX + name: np.split(values, len(values)) for name, values in facts.items()}


def facts_from_columns(columns: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """Put what `facts_to_columns` gave together again, from rows of any batches; what the settings do not give is empty there."""
    joined = {fact.name: np.concatenate(columns[_PREFIX + fact.name]) for fact in FACTS}
    return {name: values for name, values in joined.items() if len(values)}


def _plain(number: np.integer[Any] | np.floating[Any]) -> float | int | None:
    value: float | int = number.item()
    return None if math.isnan(value) else value
