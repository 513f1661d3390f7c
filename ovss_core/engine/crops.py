"""Cutting the regions of many images out of their windows in one gather, and resizing them to one size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovss_core.inference.windows import WindowLayout
from ovss_core.transfer import upload


@dataclass(frozen=True)
class WindowTables:
    """Where the windows of each image begin, along both axes.

    Attributes:
        first: First window of each image.
        across: Windows of each image side by side.
        tops, lefts: Where they begin, ascending, in pixels of the resized image; beyond any pixel where an image has
            fewer windows than the largest.
    """

    first: Int[Tensor, " images"]
    across: Int[Tensor, " images"]
    tops: Int[Tensor, "images down"]
    lefts: Int[Tensor, "images most"]

    @classmethod
    def of(cls, layouts: Sequence[WindowLayout], device: torch.device | str = "cpu") -> "WindowTables":
        """Build the tables of images whose windows follow one another."""
        counts = np.array([len(layout) for layout in layouts])
        starts = [
            [layout.vertical.starts for layout in layouts],
            [layout.horizontal.starts for layout in layouts],
        ]
        tables = upload(
            {
                "first": counts.cumsum() - counts,
                "across": np.array([len(row) for row in starts[1]]),
                "tops": _padded(starts[0]),
                "lefts": _padded(starts[1]),
            },
            device,
        )
        return cls(**tables)


def _padded(starts: Sequence[Sequence[int]]) -> np.ndarray:
    table = np.full((len(starts), max(map(len, starts))), np.iinfo(np.int64).max)
    for row, values in zip(table, starts, strict=True):
        row[: len(values)] = values
    return table


def cut_regions(
    windows: UInt8[Tensor, "windows height width 3"],
    tables: WindowTables,
    image: Int[Tensor, " regions"],
    corners: Int[Tensor, "regions 4"],
    side: int,
) -> UInt8[Tensor, "regions side side 3"]:
    """Cut boxes out of resized images and resize them bilinearly, as torch's interpolate does, to whole grey levels.

    The windows cover their image, so that each sample is read from one that holds it; no image is kept beside them.

    Args:
        windows: Of all images, one image after the other.
        tables: Where they begin.
        image: The image of each region.
        corners: x0, y0, x1, y1 in pixels of the resized image; no degenerate box.
        side: Side of the result.
    """
    x0, y0, x1, y1 = corners.unbind(1)
    row_taps, row_share = _sample(y0, y1, tables.tops[image], side)
    column_taps, column_share = _sample(x0, x1, tables.lefts[image], side)
    first, across = (table[image][:, None, None] for table in (tables.first, tables.across))
    height, width = windows.shape[1:3]
    pixels = windows.flatten(0, 2)
    mixed = []
    for y_window, y in row_taps:
        row = first + across * y_window[:, :, None]
        left, right = (
            pixels[((row + x_window[:, None, :]) * height + y[:, :, None]) * width + x[:, None, :]].float()
            for x_window, x in column_taps
        )
        mixed.append(torch.lerp(left, right, column_share[:, None, :, None]))
    blended: Tensor = torch.lerp(mixed[0], mixed[1], row_share[:, :, None, None])
    return blended.round_().to(torch.uint8)


def _sample(
    begin: Int[Tensor, " regions"],
    end: Int[Tensor, " regions"],
    starts: Int[Tensor, "regions most"],
    side: int,
) -> tuple[list[tuple[Tensor, Tensor]], Float[Tensor, "regions side"]]:
    """Find both samples of every output pixel along one axis, each as a window and a pixel in it, and their shares."""
    begin, length = begin[:, None], (end - begin)[:, None]
    place = (torch.arange(side, device=begin.device, dtype=torch.float32) + 0.5) * (length / side) - 0.5
    place = place.clamp_min(0)
    lower = place.floor().long()
    taps = []
    for tap in (lower, torch.minimum(lower + 1, length - 1)):
        pixel = begin + tap
        window = (starts[:, None, :] <= pixel[:, :, None]).sum(2) - 1  # the last that begins at or before it
        taps.append((window, pixel - starts.gather(1, window)))
    return taps, place - lower
