"""The result for one image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from ovss_core.regions import RegionVote


@dataclass(frozen=True)
class PresentClass:
    """A class with at least one pixel.

    Attributes:
        index: Its value in the label map.
        pixels: Number of its pixels.
        share: The same as a share of the image, in (0, 1].
        confidence: Mean score of its pixels: probability without purification, purified map value with it.
    """

    index: int
    name: str
    pixels: int
    share: float
    confidence: float


@dataclass(frozen=True)
class ScoredClass:
    """A class that redundancy purification kept or removed, with its score (nan: a background, kept unscored)."""

    index: int
    name: str
    score: float


class ScoredClasses(Sequence[ScoredClass]):
    """Scored classes as arrays, each made into a `ScoredClass` when it is asked for.

    Of a large vocabulary every image lists nearly all; what only passes through to a table is never made at all.

    Args:
        names: Of the whole vocabulary.
        indices: Classes that are listed, ascending.
        scores: Of the same classes.

    Attributes:
        names, indices, scores: The same.
    """

    def __init__(self, names: Sequence[str], indices: np.ndarray, scores: np.ndarray) -> None:
        self.names, self.indices, self.scores = names, indices, scores

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> ScoredClass: ...
    @overload
    def __getitem__(self, place: slice) -> "ScoredClasses": ...
    def __getitem__(self, place: int | slice) -> "ScoredClass | ScoredClasses":
        if isinstance(place, slice):
            return ScoredClasses(self.names, self.indices[place], self.scores[place])
        index = int(self.indices[place])
        return ScoredClass(index, self.names[index], float(self.scores[place]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class BoxDecision:
    """One region that several classes claimed.

    Attributes:
        x0, y0, x1, y1: Pixels of the image, exclusive end.
        winner: Index of the class that took it, or None where the region was degenerate and all kept it.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    winner: int | None


@dataclass(frozen=True)
class AmbiguityGroup:
    """Classes whose maps coincide, and who won where."""

    classes: tuple[int, ...]
    boxes: tuple[BoxDecision, ...]


SURE_MARGIN = 0.2
"""A pixel counts as sure where the winning class is at least so far ahead of the second one."""


def ignore_index(classes: int) -> int:
    """Return the value of pixels that have no label: 255, or 65535 above 255 classes."""
    return 255 if classes <= 255 else 65_535


@dataclass(frozen=True)
class Confidence:
    """How sure the labels of one image are, over all its pixels, those without a label included.

    A pixel's score is the winning class's, and its margin how far that is ahead of the second class's, both in [0, 1]
    after purification: see ``docs/output.md``.

    Attributes:
        score: Mean score.
        margin: Mean margin.
        sure: Share of pixels whose margin is at least `SURE_MARGIN`.
        ignored: Share of pixels that have no label, for their margin is below `labels.min_confidence`.
        margins: The margin of every pixel times 255, rounded, uint8 [height, width]; None unless asked for.
    """

    score: float
    margin: float
    sure: float
    ignored: float = 0.0
    margins: np.ndarray | None = None


@dataclass(frozen=True)
class Segmentation:
    """The labels of one image, at its own size, and how they came about.

    Attributes:
        label_map: Class index of every pixel [height, width], uint8, or uint16 above 255 classes; `ignore_index` where a
            pixel has no label.
        present: The classes in the label map, by index.
        kept: The purified vocabulary, by index; empty without purification.
        removed: The classes that purification removed as redundant, by index.
        groups: Ambiguous groups, their regions and the winners.
        facts: Numbers that stage 1 gives beside them, by name, such as the "threshold" of the scores; None where the
            settings give none (`ovss_core.engine.facts`).
        regions: How the regions of the image's region map voted; empty without a vote. Pixels of regions that did not
            agree enough are `ignored_label` in the label map and in no class. A class's confidence is that of the
            pixels that had it before the vote.
        confidence: How sure the labels are; None where that was not asked for.
    """

    label_map: np.ndarray
    present: tuple[PresentClass, ...]
    kept: Sequence[ScoredClass] = ()
    removed: Sequence[ScoredClass] = ()
    groups: tuple[AmbiguityGroup, ...] = ()
    facts: Mapping[str, float | int | None] = field(default_factory=dict)
    regions: tuple[RegionVote, ...] = ()
    confidence: Confidence | None = None
