"""The vote: every region takes the class that most of its pixels have, after everything else has been decided."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from ovss_core.regions.region_map import RegionMap


@dataclass(frozen=True)
class RegionVote:
    """How the pixels of one region voted.

    Attributes:
        region: Its number in the region map.
        pixels: How many pixels it has.
        winner: Index of the class that most of them had; of equal counts the lower index.
        agreement: Their share of the region, in (0, 1].
    """

    region: int
    pixels: int
    winner: int
    agreement: float


def vote(
    label_map: Integer[np.ndarray, "height width"], regions: RegionMap, min_agreement: float = 0.0
) -> tuple[Integer[np.ndarray, "height width"], tuple[RegionVote, ...]]:
    """Give each region one class, and say how much it agreed.

    Pixels of no region keep their class. The background takes part as any other class.

    Args:
        label_map: Class indices, uint8 or uint16.
        regions: Of the same image.
        min_agreement: Regions whose agreement is below are ignored: their pixels get `ignored_label`.

    Returns:
        A new label map, and one vote a region by ascending number.
    """
    names, place = regions.numbered
    counts, present = _count(place, label_map, len(names))
    winners, pixels = present[counts.argmax(1)], counts.sum(1)
    share = counts.max(1) / pixels
    labels = winners.astype(label_map.dtype)
    labels[share < min_agreement] = ignored_label(label_map.dtype)
    voted = labels[place]
    if names[0] == 0:
        nobody = place == 0
        voted[nobody] = label_map[nobody]
    decided = zip(names.tolist(), pixels.tolist(), winners.tolist(), share.tolist(), strict=True)
    return voted, tuple(RegionVote(*entry) for entry in decided if entry[0])


def ignored_label(dtype: np.dtype) -> int:
    """Return the value of pixels that are not to be used: 255 in masks of 8 bits, 65535 in those of 16."""
    return int(np.iinfo(dtype).max)


def _count(
    place: Integer[np.ndarray, "height width"],
    label_map: Integer[np.ndarray, "height width"],
    regions: int,
) -> tuple[Integer[np.ndarray, "regions present"], Integer[np.ndarray, " present"]]:
    """Count the pixels of each region by class, for the classes that are there; those are the second table."""
    present = np.flatnonzero(np.bincount(label_map.reshape(-1)))
    column = np.zeros(present[-1] + 1, np.int64)
    column[present] = np.arange(len(present))
    keys = place.reshape(-1).astype(np.int64) * len(present) + column[label_map.reshape(-1)]
    counts = np.bincount(keys, minlength=regions * len(present)).reshape(regions, len(present))
    return counts, present
