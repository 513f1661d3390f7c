"""Exact stitching of window score maps at any output size, as two small matrices.

Upsampling each window, summing the overlaps, dividing by the count and resizing to the original size are linear
and separable, so a class's map is My G Mx^T: G holds all windows' patch grids side by side, My and Mx have at
most 8 non-zero entries a row, and no map at the resized scale is ever made.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from ovss_core.inference.windows import AxisWindows, WindowLayout


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
    """Stitches the patch maps of one image's windows.

    Args:
        layout: The image's windows.
        grid: Rows and columns of patches of one window.
        size: Height and width of the result.
    """

    layout: WindowLayout
    grid: tuple[int, int]
    size: tuple[int, int]

    def side_by_side(
        self, maps: Float[Tensor, "maps windows rows columns"]
    ) -> Float[Tensor, "maps height width"]:
        """Lay the windows' grids side by side: [maps, window rows * rows, window columns * columns]."""
        down, across = len(self.layout.vertical.starts), len(self.layout.horizontal.starts)
        tiled: Tensor = maps.unflatten(1, (down, across)).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
        return tiled

    def stitch(
        self, tiled: Float[Tensor, "maps height width"], rows: slice | None = None
    ) -> Float[Tensor, "maps out_height out_width"]:
        """Return My G Mx^T for grids laid side by side, all rows of the result or a strip of them."""
        vertical = stitch_matrix(self.layout.vertical, self.grid[0], self.size[0]).to(tiled)
        horizontal = stitch_matrix(self.layout.horizontal, self.grid[1], self.size[1]).to(tiled)
        strip = vertical if rows is None else vertical[rows]
        stitched: Tensor = (strip @ tiled) @ horizontal.T
        return stitched

    def strips(self, maps: int, budget: int) -> list[slice]:
        """Split the rows of the result so that `maps` maps of one strip hold at most `budget` numbers."""
        height, width = self.size
        step = max(1, min(height, budget // max(1, maps * width)))
        return [slice(top, min(top + step, height)) for top in range(0, height, step)]
