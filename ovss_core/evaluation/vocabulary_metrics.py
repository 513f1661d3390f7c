"""How well the classes that an image was thought to hold are those it holds."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from ovss_core.evaluation.confusion import IGNORED


@dataclass(frozen=True)
class PresenceCounts:
    """Decisions about classes, summed over images.

    Attributes:
        hits: Classes kept that are in the image.
        false_alarms: Classes kept that are not.
        misses: Classes of the image that were not kept.
    """

    hits: int = 0
    false_alarms: int = 0
    misses: int = 0

    def __add__(self, other: "PresenceCounts") -> "PresenceCounts":
        """Sum over images."""
        return PresenceCounts(
            self.hits + other.hits, self.false_alarms + other.false_alarms, self.misses + other.misses
        )

    @property
    def precision(self) -> float:
        """Share of the kept classes that are present; nan where none was kept."""
        return _share(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        """Share of the present classes that were kept; nan where none is present."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def f1(self) -> float:
        """Harmonic mean of both; nan where nothing was kept and nothing is present."""
        return _share(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)

    def to_dict(self) -> dict[str, int]:
        """Return the three counts."""
        return {"hits": self.hits, "false_alarms": self.false_alarms, "misses": self.misses}

    @classmethod
    def from_dict(cls, values: Mapping[str, int]) -> "PresenceCounts":
        """Rebuild from `to_dict`."""
        return cls(values["hits"], values["false_alarms"], values["misses"])


def present_classes(
    ground_truth: Integer[np.ndarray, "height width"], background: int | None
) -> frozenset[int]:
    """Return the classes with at least one pixel that counts, the background apart."""
    return frozenset(np.unique(ground_truth[ground_truth != IGNORED]).tolist()) - {background}


def count_presence(kept: Collection[int], present: Collection[int]) -> PresenceCounts:
    """Compare the classes kept for one image with those that it holds; neither may list the background.

    Examples:
        >>> counts = count_presence(kept=[1, 2, 3], present=[2, 3, 4, 5])
        >>> counts, counts.recall
        (PresenceCounts(hits=2, false_alarms=1, misses=2), 0.5)
    """
    kept, present = frozenset(kept), frozenset(present)
    return PresenceCounts(len(kept & present), len(kept - present), len(present - kept))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
