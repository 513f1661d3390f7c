"""The plain forms of `ovss_core.kernels.groups_triton`, by the functions of the general path."""

import torch
from torch import Tensor

from ovss_core.class_purification.class_maps import first_places
from ovss_core.class_purification.groups import connected_parts, group_members, iou_of
from ovss_core.class_purification.regions import bound_parts, quantize


def groups(
    distances: Tensor, sums: Tensor, classes: Tensor, rows: int, threshold: float, excluded: int
) -> tuple[Tensor, Tensor, Tensor]:
    eligible = (classes >= 0) & (classes != excluded)
    edges = (iou_of(sums, distances) >= threshold) & eligible[:, :, None] & eligible[:, None, :]
    parts = connected_parts(edges)
    found, _ = group_members(parts, eligible, rows)
    short = rows - found.shape[1]
    found = torch.nn.functional.pad(found, (0, 0, 0, short))
    all_of_them, _ = group_members(parts, eligible, None)
    complete = all_of_them.any(2).sum(1) <= rows
    weights = found.double() / found.sum(2, keepdim=True).clamp_min(1)
    return torch.where(found, classes[:, None], -1), weights, complete


def boxes(
    maps: Tensor, members: Tensor, limits: Tensor, levels: Tensor, capacity: int, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    units, count = maps.shape[:2]
    quantized = quantize(maps).flatten(0, 1)
    regions = quantized > levels[quantized.flatten(1).amax(1).long()][:, None, None]
    bound = bound_parts(regions, exclude_last=False)
    complete = bound.used.sum(1) <= capacity
    bound = bound.without_repetitions()
    corners = torch.zeros(units * count, capacity, 4, dtype=torch.int64)
    used = torch.zeros(units * count, capacity, dtype=torch.bool)
    width = min(capacity, bound.used.shape[1])
    corners[:, :width], used[:, :width] = bound.corners[:, :width], bound.used[:, :width]
    used[:, 0] |= ~regions.flatten(1).any(1)
    corners = (corners * side).unflatten(0, (units, count))
    corners[..., 2:] = torch.minimum(corners[..., 2:], limits[:, None, None])
    return corners, used.unflatten(0, (units, count)) & (members >= 0).any(2)[:, :, None], complete


def listed(boxes_: Tensor, used: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x0, y0, x1, y1 = boxes_.flatten(0, 2).unbind(1)
    wanted = used.flatten() & (x0 < x1) & (y0 < y1)
    rows = first_places(wanted[None], capacity)[0]
    there = rows < len(wanted)
    image = torch.zeros(capacity, dtype=torch.int64)
    corners = torch.tensor([0, 0, 1, 1]).repeat(capacity, 1)
    rows = rows[there]
    image[: len(rows)] = rows // max(used[0].numel(), 1)
    corners[: len(rows)] = boxes_.flatten(0, 2)[rows]
    return image, corners, wanted.sum() <= capacity, wanted.sum()
