"""SOM, second half: replace each outlier token by the mean of its valid neighbors (SFP, eq. 5)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def repair_tokens(
    tokens: Float[Tensor, "windows tokens width"],
    outliers: Bool[Tensor, "windows patches"],
    grid: tuple[int, int],
) -> Float[Tensor, "windows tokens width"]:
    """Replace outlier patches by the mean of their non-outlier 8-neighbors on the grid.

    Args:
        tokens: Patch tokens, with or without one class token in front (told apart by their number).
        outliers: True where a patch is an outlier.
        grid: Rows and columns of patches; any shape.

    Returns:
        New tokens. An outlier without a valid neighbor stays unchanged (the released code makes it zero and
        thereby every value of its window NaN); without outliers the tokens come back unchanged.
    """
    first = tokens.shape[1] - outliers.shape[1]
    # every patch is averaged and only outliers take the result: no count of them is waited for on a GPU
    valid = ~outliers.unflatten(1, grid)[..., None]
    patches = tokens[:, first:].unflatten(1, grid) * valid
    total, count = _sum_around(patches.float()), _sum_around(valid.float())
    repairable = ~valid & (count > 0)
    mean = (total / count.clamp_min(1)).to(tokens.dtype)
    repaired = torch.where(repairable, mean, tokens[:, first:].unflatten(1, grid)).flatten(1, 2)
    return torch.cat([tokens[:, :first], repaired], 1) if first else repaired


def _sum_around(
    values: Float[Tensor, "windows rows columns channels"],
) -> Float[Tensor, "windows rows columns channels"]:
    """Sum each place and its 8 neighbors; a place that must not count is 0."""
    planes = values.movedim(3, 1)
    return functional.avg_pool2d(planes, 3, 1, 1, divisor_override=1).movedim(1, 3)
