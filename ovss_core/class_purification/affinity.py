"""How score maps spread along the layer-mean attention of their window.

FreeCP (ICCV 2025) refines maps with T T, where T is the symmetrised result of three rounds of
column-then-row normalisation of the mean attention A. Normalisation only scales rows and columns, so
T = (diag(u) A diag(v) + diag(v) A^T diag(u)) / 2 with two vectors; neither T nor T T is ever formed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDS = 3
APPLICATIONS = 2


@dataclass(frozen=True)
class Affinity:
    """The attention of each window and the two vectors that normalise it.

    Attributes:
        attention: Mean over blocks and heads of the patch-patch attention; rows need not sum to 1.
        row_scale: u, the factor of each row.
        column_scale: v, the factor of each column.
    """

    attention: Float[Tensor, "windows patches patches"]
    row_scale: Float[Tensor, "windows patches"]
    column_scale: Float[Tensor, "windows patches"]


def _reciprocal(sums: Tensor) -> Tensor:
    """Invert positive sums; an empty row or column keeps its zeros instead of turning into NaN."""
    return torch.where(sums > 0, 1 / sums.clamp_min(torch.finfo(sums.dtype).tiny), torch.zeros_like(sums))


def balance(attention: Float[Tensor, "windows patches patches"], rounds: int = ROUNDS) -> Affinity:
    """Find the vectors that `rounds` rounds of column-then-row normalisation multiply the attention by.

    Args:
        attention: Non-negative [windows, N, N]; any float format, scaled in float32 or wider.
        rounds: Rounds of one column and one row normalisation.

    Returns:
        The affinity; after the last round each row of diag(u) A diag(v) sums to 1. A row or column of
        zeros gets the factor 0, so that its patch neither gives nor receives.
    """
    attention = attention.to(torch.promote_types(attention.dtype, torch.float32))
    row_scale = torch.ones_like(attention[:, :, 0])
    column_scale = row_scale
    for _ in range(rounds):
        column_scale = _reciprocal(torch.bmm(row_scale[:, None], attention)[:, 0])
        row_scale = _reciprocal(torch.bmm(attention, column_scale[:, :, None])[:, :, 0])
    return Affinity(attention, row_scale, column_scale)


def spread(
    affinity: Affinity, maps: Float[Tensor, "windows maps patches"], applications: int = APPLICATIONS
) -> Float[Tensor, "windows maps patches"]:
    """Apply the symmetrised, normalised attention to maps, twice as FreeCP does.

    Args:
        affinity: The balanced attention of each window.
        maps: Any number of maps a window, patches row-major.
        applications: Power of T.

    Returns:
        T^applications applied to every map.
    """
    rows, columns = affinity.row_scale[:, None], affinity.column_scale[:, None]
    for _ in range(applications):
        forward = torch.bmm(maps * rows, affinity.attention) * columns
        backward = torch.bmm(maps * columns, affinity.attention.mT) * rows
        maps = (forward + backward) / 2
    return maps


def spread_rows(
    affinity: Affinity, maps: Float[Tensor, "rows patches"], window: Tensor
) -> Float[Tensor, "rows patches"]:
    """Apply `spread` to a list of maps that belong to different windows.

    Args:
        affinity: The balanced attention of each window.
        maps: One map a row.
        window: The window of each map, int64 [rows], in any order.

    Returns:
        The spread maps in the order given.
    """
    if len(maps) == 0:
        return maps
    windows = len(affinity.attention)
    counts = torch.bincount(window, minlength=windows)
    order = torch.argsort(window, stable=True)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(window)
    place[order] = torch.arange(len(window), device=window.device) - first[window[order]]
    slots = int(counts.max())
    padded = maps.new_zeros((windows, slots, maps.shape[1]))
    padded[window, place] = maps
    return spread(affinity, padded)[window, place]
