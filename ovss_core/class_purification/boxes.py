"""Which patches of a score map form a region, and the boxes around its connected parts.

The rule of FreeCP's released code: the map as 8-bit numbers, a strict threshold at a share of its maximum,
8-connected components, their bounding boxes, of which the last row and column of the grid are never part.
All maps of a batch are treated at once: labels spread to neighbours and jump along pointers until stable.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

LEVELS = 255


@dataclass(frozen=True)
class Boxes:
    """Bounding boxes of connected parts of many maps, ordered by map and then by position.

    Attributes:
        map_index: The map of each box.
        corners: x0, y0, x1, y1 in patches, the end exclusive. A part that lies only in an excluded last row
            or column leaves a degenerate box (x0 >= x1 or y0 >= y1).
    """

    map_index: Int[Tensor, " boxes"]
    corners: Int[Tensor, "boxes 4"]


def quantise(maps: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Truncate maps with values in [0, 1] to the 8-bit levels that the threshold is defined on."""
    return (maps * LEVELS).to(torch.int64)


@lru_cache
def _threshold_levels(share: float, device: torch.device) -> Tensor:
    """Tabulate int(share * peak), in double precision as the rule was written, for every 8-bit peak."""
    return torch.tensor([int(share * peak) for peak in range(LEVELS + 1)], device=device)


def threshold_regions(
    levels: Int[Tensor, "maps height width"], peaks: Int[Tensor, " maps"], share: float
) -> Bool[Tensor, "maps height width"]:
    """Select the patches strictly above a share of the peak; an all-zero map has none.

    Args:
        levels: 8-bit levels from `quantise`.
        peaks: The level that counts as each map's maximum: its own, or that of a larger map it is part of.
        share: Share of the peak, 0 to 1.
    """
    return levels > _threshold_levels(share, levels.device)[peaks][:, None, None]


def _widen(labels: Tensor, inside: Tensor, stride: int, diagonal: bool) -> Tensor:
    """Give each pixel the largest label among itself and its 8 (or 4) neighbours.

    Maps lie in one flat buffer, each row and each map followed by zeros, so that a neighbour is a shift of the
    whole buffer: by 1 sideways, by `stride` up and down.
    """
    sideways = labels.clone()
    torch.maximum(sideways[1:], labels[:-1], out=sideways[1:])
    torch.maximum(sideways[:-1], labels[1:], out=sideways[:-1])
    upright = sideways if diagonal else labels
    result = sideways.clone()
    torch.maximum(result[stride:], upright[:-stride], out=result[stride:])
    torch.maximum(result[:-stride], upright[stride:], out=result[:-stride])
    return result.mul_(inside)


def component_labels(
    regions: Bool[Tensor, "maps height width"], diagonal: bool = True
) -> Int[Tensor, "maps height width"]:
    """Label the connected parts of each map.

    A pixel takes the largest label around it, then the label of the pixel which that label names, so that
    labels travel in jumps that double. Maps on which nothing changes any more drop out.

    Args:
        regions: The pixels to label.
        diagonal: Whether diagonal neighbours are connected (8-connected) or not (4-connected).

    Returns:
        0 outside regions; inside, 1 + the largest row-major index, on a grid one column wider, of the part.
    """
    maps, height, width = regions.shape
    padded = functional.pad(regions, (0, 1, 0, 1)).flatten(1)
    size, stride = padded.shape[1], width + 1
    dtype = torch.int16 if size < torch.iinfo(torch.int16).max else torch.int32
    final = torch.arange(1, size + 1, dtype=dtype, device=regions.device) * padded
    active = torch.arange(maps, device=regions.device)
    labels, inside = final, padded.to(dtype)
    while len(active):
        widened = _widen(labels.flatten(), inside.flatten(), stride, diagonal)
        widened = _widen(widened, inside.flatten(), stride, diagonal).view(-1, size)
        named = (widened.long() - 1).clamp_min_(0)
        jumped = widened.gather(1, named).mul_(inside)
        changed = (jumped != labels).any(1).nonzero()[:, 0]
        active = active[changed]
        labels, inside = jumped[changed], inside[changed]
        final[active] = labels
    return final.view(maps, height + 1, stride)[:, :height, :width]


def _bound_parts(regions: Tensor, diagonal: bool = True) -> Boxes:
    """Bound every connected part, ends exclusive."""
    labels = component_labels(regions, diagonal)
    maps, height, width = regions.shape
    size = (height + 1) * (width + 1)
    index, y, x = regions.nonzero(as_tuple=True)
    own = index * size + y * (width + 1) + x
    part = index * size + labels[index, y, x].long() - 1
    root = (part == own).nonzero()[:, 0]
    number = own.new_empty(maps * size)
    number[own[root]] = torch.arange(len(root), device=own.device)
    part = number[part]
    x0, y0 = (_reduce(side, part, len(root), "amin") for side in (x, y))
    x1, y1 = (_reduce(side + 1, part, len(root), "amax") for side in (x, y))
    return Boxes(index[root], torch.stack([x0, y0, x1, y1], dim=1))


def _reduce(values: Tensor, part: Tensor, parts: int, how: str) -> Tensor:
    return values.new_zeros(parts).scatter_reduce_(0, part, values, how, include_self=False)


def _clip_end(corners: Tensor, height: int, width: int) -> Tensor:
    """End boxes before the last row and column; an axis of one patch is kept, or nothing would remain."""
    limit = corners.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    return torch.cat([corners[:, :2], torch.minimum(corners[:, 2:], limit)], dim=1)


def component_boxes(
    regions: Bool[Tensor, "maps height width"], exclude_last: bool = True, holes: bool = False
) -> Boxes:
    """Bound the 8-connected parts of each map.

    Args:
        regions: Selected patches.
        exclude_last: End boxes before the grid's last row and column, as the released code does.
        holes: Add, after the parts of all maps, a box around the rim of every hole. The released code's contour
            search returns these too when it looks for ambiguous regions; they duplicate or lie inside an outer
            box, so they matter only where each box is decided by itself.

    Returns:
        Boxes of all maps. A map without a selected patch has none.
    """
    height, width = regions.shape[1:]
    boxes = _bound_parts(regions)
    index, corners = boxes.map_index, boxes.corners
    if holes:
        rims = _hole_rims(regions)
        index, corners = torch.cat([index, rims.map_index]), torch.cat([corners, rims.corners])
    if exclude_last:
        corners = _clip_end(corners, height, width)
    return Boxes(index, corners)


def _hole_rims(regions: Tensor) -> Boxes:
    """Bound each hole (4-connected, enclosed by a part) with the selected patches that border it."""
    outside = functional.pad(~regions, (1, 1, 1, 1), value=True)
    boxes = _bound_parts(outside, diagonal=False)
    inner = (boxes.corners[:, :2] > 0).all(1)
    grown = boxes.corners[inner] + boxes.corners.new_tensor([-1, -1, 1, 1])
    return Boxes(boxes.map_index[inner], grown - 1)


def paint_boxes(boxes: Boxes, shape: tuple[int, int, int]) -> Bool[Tensor, "maps height width"]:
    """Mark the union of each map's boxes; degenerate boxes mark nothing.

    Args:
        boxes: Boxes with 0 <= x0, y0 and ends within the grid.
        shape: Maps, height and width of the result.
    """
    maps, height, width = shape
    device = boxes.corners.device
    changes = torch.zeros(maps, height + 1, width + 1, dtype=torch.int32, device=device)
    x0, y0, x1, y1 = boxes.corners.unbind(1)
    x1, y1 = torch.maximum(x0, x1), torch.maximum(y0, y1)
    for y, x, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        step = torch.full_like(x, sign, dtype=torch.int32)
        changes.index_put_((boxes.map_index, y, x), step, accumulate=True)
    covered = changes.cumsum(1).cumsum(2)
    return covered[:, :height, :width] > 0


def box_masks(
    maps: Float[Tensor, "maps height width"], share: float, peaks: Int[Tensor, " maps"] | None = None
) -> Bool[Tensor, "maps height width"]:
    """Mark the union of the boxes of each score map.

    Args:
        maps: Score maps with values in [0, 1].
        share: Threshold as a share of the peak.
        peaks: 8-bit peak that each map is measured against; its own when omitted.
    """
    if len(maps) == 0:
        return maps.bool()
    levels = quantise(maps)
    own = levels.flatten(1).amax(1) if peaks is None else peaks
    regions = threshold_regions(levels, own, share)
    return paint_boxes(component_boxes(regions), (len(maps), *maps.shape[1:]))
