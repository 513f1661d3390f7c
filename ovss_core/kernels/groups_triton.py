"""The kernels of `class_purification.groups`: who claims what together, and the boxes to decide it in."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ovss_core.kernels.parts_triton import launch_parts

_ROWS = 1 << 12
"""Boxes that are listed at once."""


@triton.jit
def groups_kernel(
    distances,
    sums,
    classes,
    members,
    weights,
    complete,
    places,
    groups,
    excluded,
    threshold,
    PLACES: tl.constexpr,
):
    """Join the classes of an image whose maps coincide, and list the groups of two or more by their first member."""
    unit = tl.program_id(0).to(tl.int64)
    one = tl.arange(0, PLACES)
    there = one < places
    name = tl.load(classes + unit * places + one, mask=there, other=-1)
    eligible = there & (name >= 0) & (name != excluded)
    mass = tl.load(sums + unit * places + one, mask=there, other=0.0)
    both = mass[:, None] + mass[None, :]
    apart = tl.load(
        distances + (unit * places + one[:, None]) * places + one[None, :],
        mask=there[:, None] & there[None, :],
        other=0.0,
    )
    union = (both + apart) / 2.0
    overlap = tl.where(union > 0, (both - apart) / 2.0 / tl.maximum(union, 1e-30), 0.0)
    edge = (tl.maximum(overlap, 0.0) >= threshold) & eligible[:, None] & eligible[None, :]
    first = one
    changed = tl.max(one, 0)
    while changed > 0:
        nearest = tl.min(tl.where(edge, first[None, :], PLACES), 1)
        following = tl.minimum(first, nearest)
        changed = tl.max((following != first).to(tl.int32), 0)
        first = following
    size = tl.sum((eligible[None, :] & (first[None, :] == one[:, None])).to(tl.int32), 1)
    is_group = size >= 2
    number = tl.cumsum(is_group.to(tl.int32), 0) - 1
    tl.store(complete + unit, (tl.sum(is_group.to(tl.int32), 0) <= groups).to(tl.int8))
    for group in range(groups):
        root = tl.min(tl.where(is_group & (number == group), one, PLACES), 0)
        belongs = eligible & (first == root)
        count = tl.sum(belongs.to(tl.int32), 0)
        target = (unit * groups + group) * places + one
        tl.store(members + target, tl.where(belongs, name, -1), mask=there)
        tl.store(weights + target, belongs.to(tl.float64) / tl.maximum(count, 1).to(tl.float64), mask=there)


@triton.jit
def levels_kernel(maps, levels, regions, patches, PATCHES: tl.constexpr):
    """Select the patches of a map above a share of its peak, both as 8-bit numbers."""
    map_ = tl.program_id(0).to(tl.int64)
    patch = tl.arange(0, PATCHES)
    there = patch < patches
    level = (tl.load(maps + map_ * patches + patch, mask=there, other=0.0) * 255.0).to(tl.int32)
    least = tl.load(levels + tl.max(level, 0)).to(tl.int32)
    tl.store(regions + map_ * patches + patch, (level > least).to(tl.int8), mask=there)


@triton.jit
def boxes_kernel(
    parts,
    labels,
    members,
    limits,
    boxes,
    used,
    complete,
    order,
    groups,
    places,
    patches,
    capacity,
    side,
    PATCHES: tl.constexpr,
    PLACES: tl.constexpr,
    BOXES: tl.constexpr,
):
    """List the boxes of a group's parts by their last patch, each once, in pixels; an empty map has a degenerate one."""
    map_ = tl.program_id(0).to(tl.int64)
    patch = tl.arange(0, PATCHES)
    there = patch < patches
    root = there & (tl.load(labels + map_ * patches + patch, mask=there, other=0) == patch + 1)
    number = tl.cumsum(root.to(tl.int32), 0) - 1
    count = tl.sum(root.to(tl.int32), 0)
    tl.store(complete + map_, (count <= capacity).to(tl.int8))
    tl.store(order + map_ * capacity + number, patch, mask=root & (number < capacity))
    tl.debug_barrier()
    box = tl.arange(0, BOXES)
    known = box < tl.minimum(count, capacity)
    part = tl.load(order + map_ * capacity + box, mask=known, other=0)
    corner = parts + (map_ * patches + part) * 4
    x0 = tl.load(corner, mask=known, other=0)
    y0 = tl.load(corner + 1, mask=known, other=0)
    x1 = tl.load(corner + 2, mask=known, other=0)
    y1 = tl.load(corner + 3, mask=known, other=0)
    same = (x0[:, None] == x0[None, :]) & (y0[:, None] == y0[None, :])
    same = same & (x1[:, None] == x1[None, :]) & (y1[:, None] == y1[None, :])
    earlier = same & known[None, :] & (box[None, :] < box[:, None])
    again = tl.max(earlier.to(tl.int32), 1) > 0
    there_is = (known & (again == 0)) | (box == tl.where(count == 0, 0, BOXES))
    place = tl.arange(0, PLACES)
    member = tl.load(members + map_ * places + place, mask=place < places, other=-1)
    owned = tl.max((member >= 0).to(tl.int32), 0)
    unit = map_ // groups
    right = tl.load(limits + unit * 2).to(tl.int32)
    bottom = tl.load(limits + unit * 2 + 1).to(tl.int32)
    target = boxes + (map_ * capacity + box) * 4
    inside = box < capacity
    tl.store(target, (x0 * side).to(tl.int64), mask=inside)
    tl.store(target + 1, (y0 * side).to(tl.int64), mask=inside)
    tl.store(target + 2, tl.minimum(x1 * side, right).to(tl.int64), mask=inside)
    tl.store(target + 3, tl.minimum(y1 * side, bottom).to(tl.int64), mask=inside)
    tl.store(used + map_ * capacity + box, there_is.to(tl.int8) * owned.to(tl.int8), mask=inside)


@triton.jit
def list_kernel(
    boxes, used, image, corners, needed, complete, total, boxes_of_image, capacity, ROWS: tl.constexpr
):
    """List the boxes with an area of all images, and one pixel in the rows that are left."""
    row = tl.arange(0, ROWS)
    found = tl.zeros([ROWS], tl.int32)
    start = tl.sum(found, 0)
    for first in range(0, total, ROWS):
        box = first + row
        there = box < total
        x0 = tl.load(boxes + box * 4, mask=there, other=0)
        y0 = tl.load(boxes + box * 4 + 1, mask=there, other=0)
        x1 = tl.load(boxes + box * 4 + 2, mask=there, other=0)
        y1 = tl.load(boxes + box * 4 + 3, mask=there, other=0)
        wanted = (tl.load(used + box, mask=there, other=0) != 0) & (x0 < x1) & (y0 < y1)
        target = start + tl.cumsum(wanted.to(tl.int32), 0) - 1
        fits = wanted & (target < capacity)
        tl.store(image + target, (box // boxes_of_image).to(tl.int64), mask=fits)
        tl.store(corners + target * 4, x0, mask=fits)
        tl.store(corners + target * 4 + 1, y0, mask=fits)
        tl.store(corners + target * 4 + 2, x1, mask=fits)
        tl.store(corners + target * 4 + 3, y1, mask=fits)
        start += tl.sum(wanted.to(tl.int32), 0)
    tl.store(needed, start.to(tl.int64))
    tl.store(complete, (start <= capacity).to(tl.int8))
    zero = tl.zeros([ROWS], tl.int64)
    for first in range(0, capacity, ROWS):
        left = (first + row >= start) & (first + row < capacity)
        tl.store(image + first + row, zero, mask=left)
        tl.store(corners + (first + row) * 4, zero, mask=left)
        tl.store(corners + (first + row) * 4 + 1, zero, mask=left)
        tl.store(corners + (first + row) * 4 + 2, zero + 1, mask=left)
        tl.store(corners + (first + row) * 4 + 3, zero + 1, mask=left)


def launch_groups(
    distances: Tensor, sums: Tensor, classes: Tensor, groups: int, threshold: float, excluded: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return members [images, groups, places], the weights of their mean (float64), and whether every group has its row.

    Args:
        distances: L1 distance of every two maps [images, places, places].
        sums: Sum of each map.
        classes: Class of each map, below 0 in unused places.
        groups: Rows.
        threshold: Soft IoU from which on two classes belong together.
        excluded: A class that never does, or -1.
    """
    units, places = classes.shape
    members = classes.new_empty(units, groups, places)
    weights = torch.empty(members.shape, dtype=torch.float64, device=classes.device)
    complete = torch.empty(units, dtype=torch.int8, device=classes.device)
    groups_kernel[(units,)](
        distances.contiguous(),
        sums.contiguous(),
        classes.contiguous(),
        members,
        weights,
        complete,
        places,
        groups,
        excluded,
        threshold,
        PLACES=max(triton.next_power_of_2(places), 16),
        num_warps=4,
    )
    return members, weights, complete.view(torch.bool)


def launch_boxes(
    maps: Tensor, members: Tensor, limits: Tensor, levels: Tensor, capacity: int, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes in pixels [images, groups, capacity, 4], which of them there are, and whether each map had room.

    Args:
        maps: Mean maps on the images' lattices [images, groups, height, width].
        members: Of each group, as above.
        limits: Width and height at which boxes end.
        levels: The threshold of each 8-bit peak, int16.
        capacity: Boxes of a group.
        side: Of a patch, pixels.
    """
    units, groups, height, width = maps.shape
    device, patches, count = maps.device, height * width, units * groups
    regions = torch.empty(count, height, width, dtype=torch.int8, device=device)
    columns = triton.next_power_of_2(patches)
    levels_kernel[(count,)](maps.contiguous(), levels, regions, patches, PATCHES=columns, num_warps=4)
    parts, labels = launch_parts(regions.view(torch.bool), True)
    boxes = torch.empty(units, groups, capacity, 4, dtype=torch.int64, device=device)
    used = torch.empty(units, groups, capacity, dtype=torch.int8, device=device)
    complete = torch.empty(count, dtype=torch.int8, device=device)
    order = torch.empty(count, capacity, dtype=torch.int32, device=device)
    boxes_kernel[(count,)](
        parts,
        labels,
        members,
        limits.contiguous(),
        boxes,
        used,
        complete,
        order,
        groups,
        members.shape[2],
        patches,
        capacity,
        side,
        PATCHES=columns,
        PLACES=triton.next_power_of_2(members.shape[2]),
        BOXES=max(triton.next_power_of_2(capacity), 16),
        num_warps=4,
    )
    return boxes, used.view(torch.bool), complete.view(torch.bool)


def launch_list(boxes: Tensor, used: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return image and corners of the boxes with an area, whether all had a row, and how many there are.

    Args:
        boxes, used: As above.
        capacity: Rows.
    """
    device, total = boxes.device, used.numel()
    image = torch.empty(capacity, dtype=torch.int64, device=device)
    corners = torch.empty(capacity, 4, dtype=torch.int64, device=device)
    needed = torch.empty(1, dtype=torch.int64, device=device)
    complete = torch.empty(1, dtype=torch.int8, device=device)
    list_kernel[(1,)](
        boxes.contiguous(),
        used.contiguous().view(torch.int8),
        image,
        corners,
        needed,
        complete,
        total,
        max(total // max(len(used), 1), 1),
        capacity,
        ROWS=_ROWS,
        num_warps=8,
    )
    return image, corners, complete.view(torch.bool)[0], needed[0]
