"""The kernels of `images.pixels`, windows and regions out of a table of pixels, and of a tower's patches; each in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_SAMPLES = 256


@triton.jit
def windows_kernel(pixels, first, row_pixels, windows, height, width, BLOCK: tl.constexpr):
    """Copy some bytes of a window."""
    window = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < height * width * 3
    y = place // (width * 3)
    start = tl.load(first + window) + y.to(tl.int64) * tl.load(row_pixels + window)
    value = tl.load(pixels + start * 3 + place % (width * 3), mask=inside, other=0)
    tl.store(windows + window * height * width * 3 + place, value, mask=inside)


@triton.jit
def planes_kernel(pixels, first, row_pixels, center, spread, planes, height, width, BLOCK: tl.constexpr):
    """Copy some pixels of a window, and normalize them channel by channel."""
    window = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < height * width
    y = place // width
    start = tl.load(first + window) + y.to(tl.int64) * tl.load(row_pixels + window) + place % width
    planes += window * 3 * height * width
    for channel in tl.static_range(3):
        level = tl.load(pixels + start * 3 + channel, mask=inside, other=0).to(tl.float32)
        value = tl.div_rn(level - tl.load(center + channel), tl.load(spread + channel))
        tl.store(planes + channel * height * width + place, value.to(planes.dtype.element_ty), mask=inside)


@triton.jit
def patches_kernel(planes, patches, height, width, rows, columns, SIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Lay the pixels of a window's patches side by side, channel by channel, behind a row of zeros."""
    window = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    numbers = 3 * SIDE * SIDE
    inside = place < (1 + rows * columns) * numbers
    patch = place // numbers - 1
    channel = place % numbers // (SIDE * SIDE)
    y = patch // columns * SIDE + place % (SIDE * SIDE) // SIDE
    x = patch % columns * SIDE + place % SIDE
    start = planes + window * 3 * height * width
    value = tl.load(start + (channel * height + y) * width + x, mask=inside & (patch >= 0), other=0.0)
    tl.store(patches + window * (1 + rows * columns) * numbers + place, value, mask=inside)


@triton.jit
def _sampled(begin, end, place, side):
    """Return both samples of output places along an axis, and the share of the second."""
    length = end - begin
    along = (place.to(tl.float32) + 0.5) * (length.to(tl.float32) / side) - 0.5
    along = tl.maximum(along, 0.0)
    lower = tl.floor(along).to(tl.int64)
    return begin + lower, begin + tl.minimum(lower + 1, length - 1), along - lower.to(tl.float32)


@triton.jit
def _between(one, other, share):
    """Interpolate as torch's lerp does."""
    step = other - one
    return tl.where(share < 0.5, one + share * step, other - step * (1.0 - share))


@triton.jit
def regions_kernel(pixels, first, row_pixels, image, corners, regions, side, SAMPLES: tl.constexpr):
    """Resize some pixels of a region bilinearly, to whole gray levels."""
    region = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES)
    inside = place < side * side
    owner = tl.load(image + region)
    start = tl.load(first + owner)
    line = tl.load(row_pixels + owner)
    x0 = tl.load(corners + region * 4)
    y0 = tl.load(corners + region * 4 + 1)
    x1 = tl.load(corners + region * 4 + 2)
    y1 = tl.load(corners + region * 4 + 3)
    upper, lower, down = _sampled(y0, y1, place // side, side)
    left, right, across = _sampled(x0, x1, place % side, side)
    for channel in tl.static_range(3):
        base = pixels + start * 3 + channel
        a = tl.load(base + (upper * line + left) * 3, mask=inside, other=0).to(tl.float32)
        b = tl.load(base + (upper * line + right) * 3, mask=inside, other=0).to(tl.float32)
        c = tl.load(base + (lower * line + left) * 3, mask=inside, other=0).to(tl.float32)
        d = tl.load(base + (lower * line + right) * 3, mask=inside, other=0).to(tl.float32)
        value = _between(_between(a, b, across), _between(c, d, across), down)
        level = tl.floor(value + 0.5)
        # halves go to the even level, as torch rounds
        odd = level - 2.0 * tl.floor(level * 0.5)
        level = tl.where((level - value == 0.5) & (odd == 1.0), level - 1.0, level)
        tl.store(regions + (region * side * side + place) * 3 + channel, level.to(tl.uint8), mask=inside)


def launch_windows(
    pixels: Tensor, window_first: Tensor, window_width: Tensor, size: tuple[int, int]
) -> Tensor:
    """Run `windows_kernel`; see `ImagePixels.cut_windows`."""
    height, width = size
    windows = torch.empty(len(window_first), height, width, 3, dtype=torch.uint8, device=pixels.device)
    if len(windows):
        windows_kernel[(len(windows), triton.cdiv(height * width * 3, _BLOCK))](
            pixels, window_first, window_width, windows, height, width, BLOCK=_BLOCK, num_warps=4
        )
    return windows


def launch_planes(
    pixels: Tensor,
    window_first: Tensor,
    window_width: Tensor,
    size: tuple[int, int],
    center: Tensor,
    spread: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Run `planes_kernel`; see `ImagePixels.cut_normalized`.

    Args:
        center, spread: Of the three channels, in gray levels.
    """
    height, width = size
    planes = torch.empty(len(window_first), 3, height, width, dtype=dtype, device=pixels.device)
    if len(planes):
        planes_kernel[(len(planes), triton.cdiv(height * width, _BLOCK))](
            *(pixels, window_first, window_width, center, spread, planes, height, width),
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return planes


def launch_patches(planes: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Return the pixels of each window's patches [windows, 1 + patches, 3 * side * side], channel first; the first row is 0.

    Args:
        planes: Normalized windows [windows, 3, height, width].
        grid: Rows and columns of patches.
        side: Of a patch.
    """
    planes = planes.contiguous()
    windows, _, height, width = planes.shape
    rows = 1 + grid[0] * grid[1]
    patches = planes.new_empty(windows, rows, 3 * side * side)
    if len(patches):
        patches_kernel[(windows, triton.cdiv(patches[0].numel(), _BLOCK))](
            planes, patches, height, width, *grid, SIDE=side, BLOCK=_BLOCK, num_warps=4
        )
    return patches


def launch_regions(
    pixels: Tensor, first: Tensor, width: Tensor, image: Tensor, corners: Tensor, side: int
) -> Tensor:
    """Run `regions_kernel`; see `ImagePixels.cut_regions`."""
    regions = torch.empty(len(image), side, side, 3, dtype=torch.uint8, device=pixels.device)
    if len(regions):
        regions_kernel[(len(regions), triton.cdiv(side * side, _SAMPLES))](
            pixels,
            first,
            width,
            image.contiguous(),
            corners.contiguous(),
            regions,
            side,
            SAMPLES=_SAMPLES,
            num_warps=4,
        )
    return regions
