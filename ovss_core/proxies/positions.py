"""The positional table of a second tower, fitted to a grid as the original does it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.positions import Resampling, resample_positions
from ovss_core.proxy_families.registry import Positions


def fit_positions(
    table: Float[Tensor, "places width"],
    prefix: int,
    base_grid: tuple[int, int],
    grid: tuple[int, int],
    rule: Positions,
) -> Float[Tensor, "fitted_places width"]:
    """Fit a positional table to a grid.

    Args:
        table: Rows of the tokens before the patches, then the base grid's patches row by row.
        prefix: How many rows are not of patches.
        base_grid: Rows and columns that the table was learned for.
        grid: Rows and columns wanted.
        rule: As `TowerFamily.positions` says; "rotary" has no table.
    """
    first, patches = table[:prefix], table[prefix:]
    if rule in ("corner", "aligned_corner"):
        fitted = _cut_from_square(patches, base_grid, grid, aligned=rule == "aligned_corner")
    else:
        resampling: Resampling = "antialias" if rule == "antialias" else "scale"
        padded = torch.cat([patches[:1], patches])  # the function expects a class token's row
        fitted = resample_positions(padded, base_grid, grid, resampling)[1:]
    return torch.cat([first, fitted])


def _cut_from_square(
    patches: Tensor, base_grid: tuple[int, int], grid: tuple[int, int], aligned: bool
) -> Tensor:
    """Resize the table to a square of the grid's longer side, bilinear without antialias, and cut the rest off."""
    side = max(grid)
    lattice = patches.float().unflatten(0, base_grid).permute(2, 0, 1)[None]
    if (side, side) != base_grid:
        lattice = F.interpolate(lattice, size=(side, side), mode="bilinear", align_corners=aligned)
    cut = lattice[0, :, : grid[0], : grid[1]]
    flat: Tensor = cut.flatten(1).mT.to(patches.dtype)
    return flat
