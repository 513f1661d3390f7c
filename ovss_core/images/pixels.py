"""Cutting windows and regions out of resized images that lie on the device as one table of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovss_core.images.resize import channel_levels, normalize
from ovss_core.images.windows import WindowLayout
from ovss_core.kernels import use_kernel
from ovss_core.transfer import upload


@dataclass(frozen=True)
class ImagePixels:
    """The pixels of resized images, one image after the other, and where their windows lie.

    Attributes:
        pixels: Row by row.
        first: First pixel of each image.
        width: Pixels of a row of each image.
        window_first: First pixel of each window; images' windows follow one another.
        window_width: Pixels of a row of each window's image.
        window_size: Height and width of every window.
    """

    pixels: UInt8[Tensor, "pixels 3"]
    first: Int[Tensor, " images"]
    width: Int[Tensor, " images"]
    window_first: Int[Tensor, " windows"]
    window_width: Int[Tensor, " windows"]
    window_size: tuple[int, int]

    @classmethod
    def of(
        cls, images: Sequence[np.ndarray], layouts: Sequence[WindowLayout], device: torch.device | str = "cpu"
    ) -> "ImagePixels":
        """Bring images, uint8 RGB [height, width, 3], to the device; all windows have one size."""
        counts = np.array([len(layout) for layout in layouts])
        areas = np.array([image.shape[0] * image.shape[1] for image in images])
        width = np.array([image.shape[1] for image in images])
        first = areas.cumsum() - areas
        origins = np.array([origin for layout in layouts for origin in layout.origins]).reshape(-1, 2)
        window_width = width.repeat(counts)
        tables = upload(
            {
                "pixels": [image.reshape(-1, 3) for image in images],
                "first": first,
                "width": width,
                "window_first": first.repeat(counts) + origins[:, 0] * window_width + origins[:, 1],
                "window_width": window_width,
            },
            device,
        )
        return cls(**tables, window_size=layouts[0].window_size)

    def __len__(self) -> int:
        """Count the windows."""
        return len(self.window_first)

    def part(self, images: slice, windows: slice) -> "ImagePixels":
        """Return some images with their windows; the others' pixels stay where they are."""
        return replace(
            self,
            first=self.first[images],
            width=self.width[images],
            window_first=self.window_first[windows],
            window_width=self.window_width[windows],
        )

    def image(self, image: int, size: tuple[int, int]) -> UInt8[Tensor, "height width 3"]:
        """Return a resized image whole, given its height and width."""
        height, width = size
        places = torch.arange(height * width, device=self.pixels.device)
        return self.pixels[self.first[image] + places].view(height, width, 3)

    def cut_windows(self, part: slice) -> UInt8[Tensor, "windows height width 3"]:
        """Cut some windows out."""
        table = self.pixels, self.window_first[part], self.window_width[part]
        if use_kernel(self.pixels):
            from ovss_core.kernels.pixels_triton import launch_windows

            return launch_windows(*table, self.window_size)
        return windows_of(*table, self.window_size)

    def cut_normalized(
        self, part: slice, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
    ) -> Float[Tensor, "windows 3 height width"]:
        """Cut some windows out and normalize them as `resize.normalize` does.

        Args:
            part: Which windows.
            mean, std: Of each channel, in [0, 1].
            dtype: What a tower reads them in; a GPU makes nothing else, a CPU leaves them in float32.
        """
        if use_kernel(self.pixels):
            from ovss_core.kernels.pixels_triton import launch_planes

            table = self.pixels, self.window_first[part], self.window_width[part]
            center, spread = (channel_levels(tuple(values), self.pixels.device) for values in (mean, std))
            return launch_planes(*table, self.window_size, center, spread, dtype)
        return normalize(self.cut_windows(part), mean, std)

    def cut_regions(
        self, image: Int[Tensor, " regions"], corners: Int[Tensor, "regions 4"], side: int
    ) -> UInt8[Tensor, "regions side side 3"]:
        """Cut boxes out and resize them bilinearly, as torch's interpolate does, to whole gray levels.

        Args:
            image: The image of each region.
            corners: x0, y0, x1, y1 in pixels of the resized image; no degenerate box.
            side: Side of the result.
        """
        if use_kernel(self.pixels):
            from ovss_core.kernels.pixels_triton import launch_regions

            return launch_regions(self.pixels, self.first, self.width, image, corners, side)
        return regions_of(self.pixels, self.first, self.width, image, corners, side)


def windows_of(
    pixels: UInt8[Tensor, "pixels 3"],
    window_first: Int[Tensor, " windows"],
    window_width: Int[Tensor, " windows"],
    size: tuple[int, int],
) -> UInt8[Tensor, "windows height width 3"]:
    """Do as `ImagePixels.cut_windows`, by its tables."""
    height, width = size
    y, x = torch.arange(height, device=pixels.device), torch.arange(width, device=pixels.device)
    row = window_first[:, None] + window_width[:, None] * y
    return pixels[row[:, :, None] + x]


def regions_of(
    pixels: UInt8[Tensor, "pixels 3"],
    first: Int[Tensor, " images"],
    width: Int[Tensor, " images"],
    image: Int[Tensor, " regions"],
    corners: Int[Tensor, "regions 4"],
    side: int,
) -> UInt8[Tensor, "regions side side 3"]:
    """Do as `ImagePixels.cut_regions`, by its tables."""
    x0, y0, x1, y1 = corners.unbind(1)
    rows, row_share = _sample(y0, y1, side)
    columns, column_share = _sample(x0, x1, side)
    start, line = (table[image][:, None] for table in (first, width))
    mixed = []
    for y in rows:
        row = (start + line * y)[:, :, None]
        left, right = (pixels[row + x[:, None, :]].float() for x in columns)
        mixed.append(torch.lerp(left, right, column_share[:, None, :, None]))
    blended: Tensor = torch.lerp(mixed[0], mixed[1], row_share[:, :, None, None])
    return blended.round_().to(torch.uint8)


def _sample(
    begin: Int[Tensor, " regions"], end: Int[Tensor, " regions"], side: int
) -> tuple[tuple[Tensor, Tensor], Float[Tensor, "regions side"]]:
    """Find both samples of every output pixel along one axis, in pixels of the image, and the share of the second."""
    begin, length = begin[:, None], (end - begin)[:, None]
    place = (torch.arange(side, device=begin.device, dtype=torch.float32) + 0.5) * (length / side) - 0.5
    place = place.clamp_min(0)
    lower = place.floor().long()
    return (begin + lower, begin + torch.minimum(lower + 1, length - 1)), place - lower
