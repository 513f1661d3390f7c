"""SOM, second half: replace each outlier token by the mean of its valid neighbours (SFP, eq. 5)."""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def repair_tokens(
    tokens: Float[Tensor, "windows tokens width"],
    outliers: Bool[Tensor, "windows patches"],
    grid: tuple[int, int],
) -> Float[Tensor, "windows tokens width"]:
    """Replace outlier patches by the mean of their non-outlier 8-neighbours on the grid.

    Args:
        tokens: Patch tokens, with or without one class token in front (told apart by their number).
        outliers: True where a patch is an outlier.
        grid: Rows and columns of patches; any shape.

    Returns:
        New tokens. An outlier without a valid neighbour stays unchanged (the released code makes it zero and
        thereby every value of its window NaN); without outliers the tokens come back unchanged.
    """
    windows, patches = outliers.nonzero(as_tuple=True)
    if windows.numel() == 0:
        return tokens
    first = tokens.shape[1] - outliers.shape[1]
    neighbours = _neighbour_index(*grid).to(tokens.device)[patches]
    valid = (neighbours >= 0) & ~outliers[windows[:, None], neighbours.clamp(min=0)]
    count = valid.sum(1)
    values = tokens[windows[:, None], neighbours.clamp(min=0) + first]
    total = torch.einsum("on,onw->ow", valid.to(values.dtype), values)
    repairable = count > 0
    repaired = tokens.clone()
    mean = total[repairable] / count[repairable, None].to(total.dtype)
    repaired[windows[repairable], patches[repairable] + first] = mean
    return repaired


@lru_cache(maxsize=64)
def _neighbour_index(rows: int, columns: int) -> Int[Tensor, "patches 8"]:
    """Flat indices of the 8 neighbours of each patch, -1 outside the grid."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    neighbours = []
    for dy, dx in steps:
        y, x = row + dy, column + dx
        inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        neighbours.append(torch.where(inside, y * columns + x, -1).flatten())
    return torch.stack(neighbours, 1)
