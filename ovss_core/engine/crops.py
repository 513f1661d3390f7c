"""Cutting the regions of many images out of their windows in one gather, and resizing them to one size."""

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ovss_core.inference.windows import AxisWindows, WindowLayout


def cut_regions(
    windows: UInt8[Tensor, "windows height width 3"],
    layouts: tuple[WindowLayout, ...],
    image: Int[np.ndarray, " regions"],
    corners: Int[np.ndarray, "regions 4"],
    side: int,
) -> UInt8[Tensor, "regions side side 3"]:
    """Cut boxes out of resized images and resize them bilinearly, as torch's interpolate does, to whole grey levels.

    The windows cover their image, so that each sample is read from one that holds it; no image is kept beside them.

    Args:
        windows: Of all images, one image after the other.
        layouts: Where they lie.
        image: The image of each region.
        corners: x0, y0, x1, y1 in pixels of the resized image; no degenerate box.
        side: Side of the result.
    """
    device = windows.device
    first = np.cumsum([0, *map(len, layouts[:-1])])
    rows = _Axis(corners[:, [1, 3]], [layouts[index].vertical for index in image], side, device)
    columns = _Axis(corners[:, [0, 2]], [layouts[index].horizontal for index in image], side, device)
    across = np.array([len(layout.horizontal.starts) for layout in layouts])[image]
    start, step = (torch.from_numpy(table).to(device)[:, None, None] for table in (first[image], across))
    height, width = windows.shape[1:3]
    pixels = windows.flatten(0, 2)
    mixed = []
    for y_window, y in rows.taps:
        row = start + step * y_window[:, :, None]
        left, right = (
            pixels[((row + x_window[:, None, :]) * height + y[:, :, None]) * width + x[:, None, :]].float()
            for x_window, x in columns.taps
        )
        mixed.append(left + (right - left) * columns.share[:, None, :, None])
    upper, lower = mixed
    blended: Tensor = upper + (lower - upper) * rows.share[:, :, None, None]
    return blended.round_().to(torch.uint8)


class _Axis:
    """Where the samples of each region lie along one axis: two taps, each as a window and a pixel in it."""

    def __init__(
        self, ends: Int[np.ndarray, "regions 2"], axes: list[AxisWindows], side: int, device: torch.device
    ) -> None:
        most = max(len(axis.starts) for axis in axes)
        table = np.full((len(axes), most), np.iinfo(np.int64).max)
        for row, axis in zip(table, axes, strict=True):
            row[: len(axis.starts)] = axis.starts
        starts, bounds = torch.from_numpy(table).to(device), torch.from_numpy(ends).to(device)
        begin, length = bounds[:, :1], bounds[:, 1:] - bounds[:, :1]
        place = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) * (length / side) - 0.5
        place = place.clamp_min(0)
        lower = place.floor().long()
        self.share = place - lower
        upper = torch.minimum(lower + 1, length - 1)
        self.taps = [self._locate(begin + tap, starts) for tap in (lower, upper)]

    def _locate(self, pixel: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Find the last window that begins at or before each pixel, and the pixel's place in it."""
        window = (starts[:, None, :] <= pixel[:, :, None]).sum(2) - 1
        return window, pixel - starts.gather(1, window)
