"""Resample a learned positional table to the patch grid of a window."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Resampling = Literal["scale", "antialias", "bilinear"]


def resample_positions(
    table: Float[Tensor, "tokens width"],
    base_grid: tuple[int, int],
    grid: tuple[int, int],
    resampling: Resampling = "scale",
) -> Float[Tensor, "resampled_tokens width"]:
    """Fit the positional table of the base grid to another grid.

    Args:
        table: Class token first, then the base grid's patches row by row.
        base_grid: Rows and columns that the table was learned for.
        grid: Rows and columns wanted.
        resampling: "scale" is bicubic (a = -0.75, clamped borders) with scale (n + 0.1) / base on each axis,
            as DINO, SCLIP and both methods do; "antialias" resamples by size with antialiasing, as GEM does;
            "bilinear" by size without, as CLIP Surgery and CLIPer do.

    Returns:
        The table for `grid`, class token first; `table` itself when the grids agree.
    """
    if grid == base_grid:
        return table
    patches = table[1:].float().reshape(1, *base_grid, -1).permute(0, 3, 1, 2)
    if resampling == "antialias":
        resampled = F.interpolate(patches, size=grid, mode="bicubic", antialias=True)
    elif resampling == "bilinear":
        resampled = F.interpolate(patches, size=grid, mode="bilinear")
    else:
        scale = [(wanted + 0.1) / base for wanted, base in zip(grid, base_grid, strict=True)]
        resampled = F.interpolate(patches, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
    flat = resampled.permute(0, 2, 3, 1).reshape(-1, table.shape[1]).to(table.dtype)
    return torch.cat([table[:1], flat])
