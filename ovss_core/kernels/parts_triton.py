"""Connected parts of many small maps, one map a program."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def parts_kernel(
    regions,
    labels,
    corners,
    union,
    height,
    width,
    limit_y,
    limit_x,
    PLACES: tl.constexpr,
    DIAGONAL: tl.constexpr,
    UNION: tl.constexpr,
):
    """Name the places of each part by its last place + 1, and bound it.

    Neighbors talk through `labels`, which nobody but this program touches; a barrier stands between writing and
    reading. A round takes the largest name around a place, and then the name that the named place has got itself.
    """
    patches = height * width
    start = tl.program_id(0).to(tl.int64) * patches
    place = tl.arange(0, PLACES)
    exists = place < patches
    y = place // width
    x = place % width
    inside = tl.load(regions + start + place, mask=exists, other=0) != 0
    name = tl.where(inside, place + 1, 0)
    tl.store(labels + start + place, name, mask=exists)
    tl.debug_barrier()
    changed = tl.max(name, 0)
    while changed > 0:
        best = name
        for dy in tl.static_range(-1, 2):
            for dx in tl.static_range(-1, 2):
                if DIAGONAL or dy == 0 or dx == 0:
                    there = inside & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
                    best = tl.maximum(
                        best, tl.load(labels + start + place + dy * width + dx, mask=there, other=0)
                    )
        best = tl.maximum(best, tl.load(labels + start + best - 1, mask=inside, other=0))
        changed = tl.max((best != name).to(tl.int32), 0)
        name = best
        tl.debug_barrier()
        tl.store(labels + start + place, name, mask=exists)
        tl.debug_barrier()
    bound = corners + start * 4
    tl.store(bound + place * 4, tl.zeros([PLACES], tl.int32) + width, mask=exists)
    tl.store(bound + place * 4 + 1, tl.zeros([PLACES], tl.int32) + height, mask=exists)
    tl.store(bound + place * 4 + 2, tl.zeros([PLACES], tl.int32), mask=exists)
    tl.store(bound + place * 4 + 3, tl.zeros([PLACES], tl.int32), mask=exists)
    tl.debug_barrier()
    named = (name - 1) * 4
    tl.atomic_min(bound + named, x, mask=inside)
    tl.atomic_min(bound + named + 1, y, mask=inside)
    tl.atomic_max(bound + named + 2, x + 1, mask=inside)
    tl.atomic_max(bound + named + 3, y + 1, mask=inside)
    if UNION:
        tl.debug_barrier()
        covered = tl.zeros([PLACES], tl.int32)
        left = tl.where(inside & (name == place + 1), place + 1, 0)
        root = tl.max(left, 0)
        while root > 0:
            box = bound + (root - 1) * 4
            # an atomic that changes nothing reads past the first-level cache, as the boxes were written
            x0 = tl.atomic_add(box, 0)
            y0 = tl.atomic_add(box + 1, 0)
            x1 = tl.minimum(tl.atomic_add(box + 2, 0), limit_x)
            y1 = tl.minimum(tl.atomic_add(box + 3, 0), limit_y)
            covered |= ((x >= x0) & (x < x1) & (y >= y0) & (y < y1)).to(tl.int32)
            left = tl.where(left == root, 0, left)
            root = tl.max(left, 0)
        tl.store(union + start + place, covered.to(tl.int8), mask=exists)


def launch_parts(regions: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Return x0, y0, x1, y1 of each part at the place that names it [maps, patches, 4], and every place's name."""
    corners, labels, _ = _launch(regions, diagonal, False, (0, 0))
    return corners, labels


def launch_union(regions: Tensor, limits: tuple[int, int]) -> Tensor:
    """Mark the union of the boxes of each map's 8-connected parts, ended at rows and columns `limits`."""
    return _launch(regions, True, True, limits)[2]


def _launch(
    regions: Tensor, diagonal: bool, union: bool, limits: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    maps, height, width = regions.shape
    device = regions.device
    labels = torch.empty(maps, height * width, dtype=torch.int32, device=device)
    corners = torch.empty(maps, height * width, 4, dtype=torch.int32, device=device)
    covered = torch.empty(regions.shape if union else (1,), dtype=torch.int8, device=device)
    if maps:
        parts_kernel[(maps,)](
            regions.contiguous().view(torch.int8),
            labels,
            corners,
            covered,
            height,
            width,
            *limits,
            PLACES=triton.next_power_of_2(height * width),
            DIAGONAL=diagonal,
            UNION=union,
            num_warps=2,
        )
    return corners, labels, covered.view(torch.bool)
