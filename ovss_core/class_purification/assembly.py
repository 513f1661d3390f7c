"""From the kept maps of a whole batch to one result an image, with few transfers to the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovss_core.class_purification.ambiguity import (
    AmbiguousGroups,
    Box,
    find_groups,
    group_boxes,
    lay_on_lattice,
    pad_kept,
)
from ovss_core.class_purification.batch import PurificationInput, Units
from ovss_core.class_purification.winners import GroupProposal, ImagePurification
from ovss_core.config import PurificationConfig


@dataclass(frozen=True)
class KeptRows:
    """Maps of the kept (class, unit) pairs, one row a window.

    Attributes:
        window: Window of each map.
        class_index: Class of each map.
        unit: Unit of each map.
        maps: q.
    """

    window: Int[Tensor, " rows"]
    class_index: Int[Tensor, " rows"]
    unit: Int[Tensor, " rows"]
    maps: Float[Tensor, "rows patches"]

    def select(self, wanted: Tensor) -> "KeptRows":
        """Return the rows of a boolean mask."""
        chosen = wanted.nonzero()[:, 0]
        return KeptRows(self.window[chosen], self.class_index[chosen], self.unit[chosen], self.maps[chosen])


def join_rows(parts: Sequence[KeptRows]) -> KeptRows:
    """Put the rows of several chunks of classes together."""
    return KeptRows(
        torch.cat([part.window for part in parts]),
        torch.cat([part.class_index for part in parts]),
        torch.cat([part.unit for part in parts]),
        torch.cat([part.maps for part in parts]),
    )


def propose_groups(
    batch: PurificationInput, units: Units, rows: KeptRows, config: PurificationConfig, excluded: int | None
) -> list[tuple[GroupProposal, ...]]:
    """Find the ambiguous groups of each image and their boxes in pixels.

    Boxes of windows follow the released code: the last row and column of the grid are not part of them, and in
    the "released" variant the rims of holes are boxes too. Boxes of images reach to the image's edge.

    Args:
        batch: The windows.
        units: Images or windows.
        rows: Kept maps.
        config: Variant and thresholds; without `ambiguity` there are no groups.
        excluded: A class that is never ambiguous.
    """
    proposals: list[list[GroupProposal]] = [[] for _ in batch.image_sizes]
    if config.ambiguity and len(rows.window):
        padded = pad_kept(rows.unit, rows.window, rows.class_index, rows.maps, units)
        groups = find_groups(padded, config.ambiguity_threshold, excluded)
        if groups.members and config.variant == "image":
            _add_image_groups(batch, units, groups, config.box_threshold, proposals)
        elif groups.members:
            _add_window_groups(batch, groups, config, proposals)
    return [tuple(image) for image in proposals]


def _add_image_groups(
    batch: PurificationInput,
    units: Units,
    groups: AmbiguousGroups,
    share: float,
    proposals: list[list[GroupProposal]],
) -> None:
    images = groups.unit.tolist()
    heights, widths = zip(*(batch.image_sizes[image] for image in images), strict=True)
    maps = lay_on_lattice(
        groups,
        units,
        batch.window_origin,
        batch.window_size,
        batch.grid,
        (max(heights), max(widths)),
        batch.patch_size,
    )
    boxes = group_boxes(maps, share, exclude_last=False, holes=False)
    for image, members, corners in zip(images, groups.members, boxes, strict=True):
        pixels = _to_pixels(corners, batch.patch_size, batch.image_sizes[image])
        proposals[image].append(GroupProposal(members, None, pixels))


def _add_window_groups(
    batch: PurificationInput,
    groups: AmbiguousGroups,
    config: PurificationConfig,
    proposals: list[list[GroupProposal]],
) -> None:
    maps = groups.maps[:, 0].unflatten(1, batch.grid)
    boxes = group_boxes(maps, config.box_threshold, exclude_last=True, holes=config.variant == "released")
    image = batch.image_index[groups.unit]
    first = Units(batch.image_index, len(batch.image_sizes)).first
    places = torch.stack([image, groups.unit - first[image]], dim=1).tolist()
    for (index, window), members, corners in zip(places, groups.members, boxes, strict=True):
        pixels = _to_pixels(corners, batch.patch_size, batch.window_size)
        proposals[index].append(GroupProposal(members, window, pixels))


def _to_pixels(boxes: Sequence[Box], patch_size: int, limit: tuple[int, int]) -> tuple[Box, ...]:
    height, width = limit
    return tuple(
        (x0 * patch_size, y0 * patch_size, min(x1 * patch_size, width), min(y1 * patch_size, height))
        for x0, y0, x1, y1 in boxes
    )


def assemble(
    batch: PurificationInput,
    unit_image: Int[Tensor, " units"],
    scores: Float[Tensor, "classes units"],
    rows: KeptRows,
    groups: Sequence[tuple[GroupProposal, ...]],
) -> list[ImagePurification]:
    """Cut scores, kept classes and dense maps into one result an image.

    Args:
        batch: The windows.
        unit_image: Image of each unit.
        scores: Score of each class in each unit; an image takes the largest of its units.
        rows: Kept maps.
        groups: Groups of each image.
    """
    count, classes = len(batch.image_sizes), len(scores)
    images = Units(batch.image_index, count)
    best = Units(unit_image, count).reduce(scores, "amax").to(rows.maps.dtype)
    row_image = unit_image[rows.unit]
    kept = torch.zeros((count, classes), dtype=torch.bool, device=scores.device)
    kept[row_image, rows.class_index] = True
    kept_counts = kept.sum(1)
    lengths = kept_counts * images.sizes
    place = kept.cumsum(1)[row_image, rows.class_index] - 1
    slot = rows.window - images.first[row_image]
    start = (lengths.cumsum(0) - lengths)[row_image]
    sizes: list[tuple[int, int]] = torch.stack([kept_counts, images.sizes], dim=1).tolist()
    dense = rows.maps.new_zeros((sum(kept * windows for kept, windows in sizes), rows.maps.shape[1]))
    dense[start + place * images.sizes[row_image] + slot] = rows.maps
    maps = dense.split([kept * windows for kept, windows in sizes])
    indices = kept.nonzero()[:, 1].split([kept for kept, _ in sizes])
    return [
        ImagePurification(score, index, part.view(*size, *batch.grid), proposals)
        for score, index, part, size, proposals in zip(
            best.unbind(1), indices, maps, sizes, groups, strict=True
        )
    ]
