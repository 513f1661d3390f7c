"""Which patches of a score map form a region, and the boxes around its connected parts.

The rule of FreeCP's released code: the map as 8-bit numbers, a strict threshold at a share of its maximum, 8-connected
components, their bounding boxes, of which the last row and column of the grid are never part. All maps of a batch are
treated at once, by SciPy on a CPU and by label propagation on a GPU (in a kernel, or without Triton in a fixed number
of rounds); all give the same boxes in the same order.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from ovss_core.kernels import use_kernel

LEVELS = 255
DEVICE_ROUNDS = 7
"""Rounds of label propagation on a GPU without Triton. A round crosses two patches and then jumps to what the label names, so that
distances double; a part that winds more than that (`Boxes.complete` is false) goes the way of the CPU."""

_EIGHT = np.zeros((3, 3, 3), bool)
_EIGHT[1] = True
_FOUR = np.zeros((3, 3, 3), bool)
_FOUR[1, 1], _FOUR[1, :, 1] = True, True


@dataclass(frozen=True)
class Boxes:
    """Bounding boxes of connected parts of many maps, by map and then by the parts' last patch.

    Attributes:
        corners: x0, y0, x1, y1 in patches, the end exclusive; 0 in unused rows. A part that lies only in an
            excluded last row or column leaves a degenerate box (x0 >= x1 or y0 >= y1).
        used: Which rows of `corners` hold a box.
        complete: Whether every part has its box.
    """

    corners: Int[Tensor, "maps boxes 4"]
    used: Bool[Tensor, "maps boxes"]
    complete: Bool[Tensor, ""]

    def without_repetitions(self) -> "Boxes":
        """Return every box of a map once, where it comes first."""
        same = (self.corners[:, :, None] == self.corners[:, None]).all(-1) & self.used[:, None]
        return replace(self, used=self.used & ~same.tril(-1).any(2))


def quantize(maps: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Truncate maps with values in [0, 1] to the 8-bit levels that the threshold is defined on."""
    return (maps * LEVELS).to(torch.int16)


@lru_cache
def threshold_levels(share: float, device: torch.device) -> Int[Tensor, " levels"]:
    """Tabulate int(share * peak), in double precision as the rule was written, for every 8-bit peak."""
    table = [int(share * peak) for peak in range(LEVELS + 1)]
    return torch.tensor(table, dtype=torch.int16, device=device)


@lru_cache
def _numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Hold a few numbers on a device, as bringing them there each time would wait."""
    return torch.tensor(values, device=device)


def threshold_regions(
    levels: Int[Tensor, "*maps patches"], peaks: Int[Tensor, "*maps"], share: float
) -> Bool[Tensor, "*maps patches"]:
    """Select the patches strictly above a share of the peak; an all-zero map has none.

    Args:
        levels: 8-bit levels from `quantize`.
        peaks: The level that counts as each map's maximum: its own, or that of a larger map it is part of.
        share: Share of the peak, 0 to 1.
    """
    return levels > threshold_levels(share, levels.device)[peaks.long()][..., None]


def bound_parts(
    regions: Bool[Tensor, "maps height width"],
    exclude_last: bool = True,
    holes: bool = False,
    capacity: int | None = None,
) -> Boxes:
    """Bound the 8-connected parts of each map.

    Args:
        regions: Selected patches.
        exclude_last: End boxes before the grid's last row and column, as the released code does.
        holes: Add, after the parts of a map, a box around the rim of every hole. The released code's contour search
            returns these too when it looks for ambiguous regions; they duplicate or lie inside an outer box, so they
            matter only where each box is decided by itself.
        capacity: Boxes of a map, so that nothing has to be counted; None makes as many as the fullest map needs.
    """
    height, width = regions.shape[1:]

    def bound(parts: Tensor, diagonal: bool) -> Boxes:
        return (
            _bound_and_count(parts, diagonal)
            if capacity is None
            else _bound_in_places(parts, diagonal, capacity)
        )

    boxes = bound(regions, True)
    corners, used, complete = boxes.corners, boxes.used, boxes.complete
    if holes:
        # a hole is an enclosed 4-connected part of the outside; its rim is one patch wider on each side
        outside = functional.pad(~regions, (1, 1, 1, 1), value=True)
        rims = bound(outside, False)
        inner = rims.used & (rims.corners[..., :2] > 0).all(-1)
        grown = rims.corners + _numbers((-2, -2, 0, 0), rims.corners.device)
        corners, used = torch.cat([corners, grown], 1), torch.cat([used, inner], 1)
        complete = complete & rims.complete
    if exclude_last:
        # an axis of one patch is kept, or nothing would remain
        limit = _numbers((max(width - 1, 1), max(height - 1, 1)), corners.device)
        corners = torch.cat([corners[..., :2], torch.minimum(corners[..., 2:], limit)], -1)
    return Boxes(corners, used, complete)


def box_union(regions: Bool[Tensor, "maps height width"]) -> Bool[Tensor, "maps height width"]:
    """Mark the union of the bounding boxes of each map's parts, the last row and column left out.

    On a GPU without Triton a part that winds more than `DEVICE_ROUNDS` rounds can follow is bounded in pieces.
    """
    if regions.device.type != "cpu":
        return _union_on_device(regions)
    height, width = regions.shape[1:]
    limit_y, limit_x = max(height - 1, 1), max(width - 1, 1)
    union = np.zeros(regions.shape, bool)
    for index, rows, columns in _find_parts(regions, _EIGHT)[1]:
        union[
            index.start, rows.start : min(rows.stop, limit_y), columns.start : min(columns.stop, limit_x)
        ] = True
    return torch.from_numpy(union)


def _bound_and_count(regions: Tensor, diagonal: bool) -> Boxes:
    """Bound parts on the CPU; the order is that of each part's last patch, as contour searches have it."""
    maps, height, width = regions.shape
    labels, slices = _find_parts(regions, _EIGHT if diagonal else _FOUR)
    parts = len(slices)
    last = np.zeros(parts + 1, np.int64)
    last[labels.ravel()] = np.arange(labels.size)  # of equal labels the last assignment stays
    order = np.argsort(last[1:], kind="stable")
    bounds = np.array(
        [[x.start, y.start, x.stop, y.stop] for _, y, x in (slices[part] for part in order)], np.int64
    ).reshape(-1, 4)
    owner = last[1:][order] // (height * width)
    counts = np.bincount(owner, minlength=maps)
    most = int(counts.max(initial=0))
    place = np.arange(parts) - (counts.cumsum() - counts)[owner]
    corners, used = np.zeros((maps, most, 4), np.int64), np.zeros((maps, most), bool)
    corners[owner, place], used[owner, place] = bounds, True
    table, there = (torch.from_numpy(values).to(regions.device) for values in (corners, used))
    return Boxes(table, there, there.new_ones(()))


def _find_parts(regions: Tensor, neighbors: np.ndarray) -> tuple[np.ndarray, list[tuple[slice, ...]]]:
    """Number the parts of all maps from 1, and bound each by slices of map, rows and columns."""
    labels, count = ndimage.label(regions.cpu().numpy(), neighbors)
    return labels, ndimage.find_objects(labels, count) if count else []


def _bound_in_places(regions: Tensor, diagonal: bool, capacity: int) -> Boxes:
    """Bound parts where they are, with shapes that are known beforehand."""
    corners, root, stable = _corners_in_places(regions, diagonal)
    patches = root.shape[1]
    places = torch.where(root, torch.arange(patches, device=root.device), patches).sort(1).values
    chosen = places[:, :capacity]
    used = chosen < patches
    index = chosen.clamp_max(patches - 1)[..., None].expand(-1, -1, 4)
    return Boxes(
        corners.gather(1, index) * used[..., None], used, stable & (root.sum(1) <= used.shape[1]).all()
    )


def _union_on_device(regions: Tensor) -> Tensor:
    """Add one at two corners of every box, take it away at the others, and sum along both axes."""
    maps, height, width = regions.shape
    limit_y, limit_x = max(height - 1, 1), max(width - 1, 1)
    if use_kernel(regions):
        from ovss_core.kernels.parts_triton import launch_union

        return launch_union(regions, (limit_y, limit_x))
    corners, root, _ = _corners_in_places(regions, True)
    x0, y0, x1, y1 = corners.unbind(2)
    x1 = torch.maximum(x0, x1.clamp_max(limit_x))
    y1 = torch.maximum(y0, y1.clamp_max(limit_y))
    changes = torch.zeros(maps, (height + 1) * (width + 1), device=regions.device)
    sign = root.float()
    for y, x, step in ((y0, x0, sign), (y0, x1, -sign), (y1, x0, -sign), (y1, x1, sign)):
        changes.scatter_add_(1, torch.where(root, y * (width + 1) + x, 0), step)
    # sums along short axes as products with triangles of ones: a scan of so few numbers keeps a GPU idle
    down, along = (torch.ones(side, side, device=regions.device).tril() for side in (height + 1, width + 1))
    covered = down @ changes.view(maps, height + 1, width + 1) @ along.mT
    return covered[:, :height, :width] > 0.5


def _corners_in_places(regions: Tensor, diagonal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the corners of each part at the place that names it, which places name one, and whether all do."""
    if use_kernel(regions):
        from ovss_core.kernels.parts_triton import launch_parts

        corners, labels = launch_parts(regions, diagonal)
        every = torch.arange(1, labels.shape[1] + 1, device=labels.device)
        return corners.long(), labels == every, torch.ones((), dtype=torch.bool, device=labels.device)
    labels, stable = _part_labels(regions, diagonal)
    return *_corners_of_labels(labels), stable


def _part_labels(regions: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Name every patch of a part by the part's last place + 1, 0 outside; and whether the names are stable."""
    maps, height, width = regions.shape
    inside = regions.float()
    every = torch.arange(1, height * width + 1, dtype=torch.float32, device=regions.device)
    labels = inside * every.view(height, width)
    for _ in range(DEVICE_ROUNDS):
        for _ in range(2):
            labels = _largest_around(labels, diagonal).mul_(inside)
        flat = labels.view(maps, -1)
        labels = flat.gather(1, (flat - 1).clamp_min_(0).long()).view_as(labels).mul_(inside)
    return labels, (_largest_around(labels, diagonal) * inside == labels).all()


def _largest_around(labels: Tensor, diagonal: bool) -> Tensor:
    planes = labels[:, None]
    if diagonal:
        return functional.max_pool2d(planes, 3, 1, 1)[:, 0]
    upright = functional.max_pool2d(planes, (3, 1), 1, (1, 0))
    return torch.maximum(upright, functional.max_pool2d(planes, (1, 3), 1, (0, 1)))[:, 0]


def _corners_of_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return x0, y0, x1, y1 of each part at the place that names it, and which places name a part."""
    maps, height, width = labels.shape
    flat = labels.view(maps, -1).long()
    device = labels.device
    y = torch.arange(height, device=device).repeat_interleave(width).expand(maps, -1)
    x = torch.arange(width, device=device).repeat(height).expand(maps, -1)
    sides = ((x, "amin", width), (y, "amin", height), (x + 1, "amax", 0), (y + 1, "amax", 0))
    corners = [
        flat.new_full((maps, height * width + 1), start).scatter_reduce_(1, flat, side, how)[:, 1:]
        for side, how, start in sides
    ]
    return torch.stack(corners, 2), flat == torch.arange(1, height * width + 1, device=device)
