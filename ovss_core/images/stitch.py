"""Exact stitching of window score maps at any output size, as two small matrices, for a batch of images at once.

Upsampling each window, summing the overlaps, dividing by the count and resizing to the original size are linear and
separable, so a map is My G Mx^T: G holds all windows' patch grids side by side, My and Mx have at most 8 non-zero
entries a row, and no map at the resized scale is ever made. Images of different sizes share a batch: their matrices are
padded with zeros to the largest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.images.windows import AxisWindows, WindowLayout
from ovss_core.transfer import upload


def bilinear_matrix(length: int, output: int) -> Float[Tensor, "output length"]:
    """Return the matrix of bilinear resampling with align_corners=False; float64."""
    source = ((torch.arange(output, dtype=torch.float64) + 0.5) * length / output - 0.5).clamp_(0, length - 1)
    lower = source.floor().long()
    upper = (lower + 1).clamp_(max=length - 1)
    share = source - lower
    matrix = torch.zeros(output, length, dtype=torch.float64)
    matrix.scatter_add_(1, lower[:, None], (1 - share)[:, None])
    return matrix.scatter_add_(1, upper[:, None], share[:, None])


@lru_cache(maxsize=512)
def stitch_matrix(axis: AxisWindows, patches: int, output: int) -> Float[Tensor, "output grid"]:
    """Return M = resize * diag(1 / count) * place for one axis, float32.

    Args:
        axis: The windows along the axis.
        patches: Patches of one window along the axis.
        output: Length of the result, pixels.

    Returns:
        [output, windows * patches].
    """
    upsample = bilinear_matrix(patches, axis.size)
    placed = torch.zeros(axis.length, len(axis.starts) * patches, dtype=torch.float64)
    count = torch.zeros(axis.length, dtype=torch.float64)
    for index, start in enumerate(axis.starts):
        rows = slice(start, start + axis.size)
        placed[rows, index * patches : (index + 1) * patches] += upsample
        count[rows] += 1
    averaged = placed / count[:, None]
    resized = averaged if output == axis.length else bilinear_matrix(axis.length, output) @ averaged
    return resized.float()


@dataclass(frozen=True)
class Stitcher:
    """Stitches the patch maps of the windows of several images.

    Args:
        layouts: Each image's windows, all of one size.
        grid: Rows and columns of patches of a window.
        sizes: Height and width of each result.
        device: Where the maps are.
    """

    layouts: tuple[WindowLayout, ...]
    grid: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]
    device: torch.device | str = "cpu"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that hold every result."""
        return max(height for height, _ in self.sizes), max(width for _, width in self.sizes)

    @cached_property
    def _tables(self) -> dict[str, Tensor]:
        """My [images, height, grid height] and Mx [images, width, grid width], zero outside an image; where windows lie."""
        down = max(len(layout.vertical.starts) for layout in self.layouts)
        across = max(len(layout.horizontal.starts) for layout in self.layouts)
        windows = np.full((len(self.layouts), down, across), -1)
        first = 0
        for row, layout in zip(windows, self.layouts, strict=True):
            shape = len(layout.vertical.starts), len(layout.horizontal.starts)
            row[: shape[0], : shape[1]] = first + np.arange(len(layout)).reshape(shape)
            first += len(layout)
        (vertical, vertical_of), (horizontal, horizontal_of) = self._matrices(0), self._matrices(1)
        tables = upload(
            {
                "vertical": vertical,
                "horizontal": horizontal,
                "vertical_of": vertical_of,
                "horizontal_of": horizontal_of,
                "windows": windows.clip(min=0),
                "nothing": windows < 0,
                "sizes": np.array(self.sizes),
            },
            self.device,
        )
        for name in ("vertical", "horizontal"):
            if len(tables[name]) < len(self.sizes):
                tables[name] = tables[name][tables[f"{name}_of"]]
        return tables

    def _matrices(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrices of one axis and which one each image has: of images as large there is one, which travels once."""
        name = ("vertical", "horizontal")[axis]
        keys = [
            (getattr(layout, name), size[axis]) for layout, size in zip(self.layouts, self.sizes, strict=True)
        ]
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        matrices = [stitch_matrix(windows, self.grid[axis], size).numpy() for windows, size in places]
        padded = np.zeros((len(matrices), self.size[axis], max(m.shape[1] for m in matrices)), np.float32)
        for row, matrix in zip(padded, matrices, strict=True):
            row[: matrix.shape[0], : matrix.shape[1]] = matrix
        return padded, np.array([places[key] for key in keys])

    @property
    def shares(self) -> Float[Tensor, "images width columns"]:
        """Shares of the columns of the grids in each column of a result; zero outside an image."""
        return self._tables["horizontal"]

    @property
    def areas(self) -> Int[Tensor, "images 2"]:
        """Height and width of each result."""
        return self._tables["sizes"]

    @property
    def inside(self) -> Bool[Tensor, "images height width"]:
        """Which pixels of the padded results belong to each image."""
        heights, widths = self.areas[:, :, None].unbind(1)
        height, width = self.size
        rows = torch.arange(height, device=self.device) < heights
        return rows[:, :, None] & (torch.arange(width, device=self.device) < widths)[:, None]

    def tile(self, maps: Float[Tensor, "windows maps patches"]) -> Float[Tensor, "images maps height width"]:
        """Lay the grids of each image's windows side by side: [images, maps, rows of windows * rows, ...].

        Args:
            maps: Maps of the windows of all images, one image after the other; zeros stand where an image has fewer windows
                than the largest.
        """
        laid = maps[self._tables["windows"]].unflatten(4, self.grid)
        if len(set(self.layouts)) > 1:
            laid = laid.masked_fill(self._tables["nothing"][..., None, None, None], 0)
        # [images, down, across, maps, rows, columns], the windows' rows beside the patches' rows
        tiled: Tensor = laid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return tiled

    def stitch(
        self,
        tiled: Float[Tensor, "images maps height width"],
        rows: slice | None = None,
        columns: slice | None = None,
    ) -> Float[Tensor, "images maps out_height out_width"]:
        """Return My G Mx^T for grids laid side by side, the whole results or a rectangle of them."""
        vertical, horizontal = self._tables["vertical"], self._tables["horizontal"]
        down = vertical if rows is None else vertical[:, rows]
        across = horizontal if columns is None else horizontal[:, columns]
        stitched: Tensor = (down[:, None] @ tiled) @ across[:, None].mT
        return stitched

    def stitch_rows(
        self, tiled: Float[Tensor, "images maps height width"], rows: slice
    ) -> Float[Tensor, "images out_height maps width"]:
        """Return My G for some rows of the results, whose columns are still those of the grids."""
        down = tiled.transpose(1, 2).flatten(2)
        stitched: Tensor = self._tables["vertical"][:, rows] @ down
        apart: Tensor = stitched.unflatten(2, (tiled.shape[1], tiled.shape[3]))
        return apart

    def strips(self, maps: int, budget: int, width: int | None = None) -> list[slice]:
        """Split the rows of the results so that `maps` maps of one strip hold at most `budget` numbers.

        Args:
            maps: Number of maps.
            budget: Numbers.
            width: Columns of the maps; None takes those of the results.
        """
        height, width = self.size[0], width or self.size[1]
        step = max(1, min(height, budget // max(1, len(self.sizes) * maps * width)))
        return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def chunk_by_area(sizes: Sequence[tuple[int, int]], maps: int, budget: int) -> list[slice]:
    """Split a batch so that `maps` padded maps of a chunk hold at most `budget` numbers; one image at least."""
    chunks: list[slice] = []
    start = height = width = 0
    for place, size in enumerate(sizes):
        height, width = max(height, size[0]), max(width, size[1])
        if place > start and (place + 1 - start) * maps * height * width > budget:
            chunks.append(slice(start, place))
            start, (height, width) = place, size
    return [*chunks, slice(start, len(sizes))] if sizes else []
