"""How score maps spread along the layer-mean attention of their window.

FreeCP (ICCV 2025) refines maps with T T, where T is the symmetrized result of three rounds of column-then-row
normalization of the mean attention A. Normalization only scales rows and columns, so T = (diag(u) A diag(v) +
diag(v) A^T diag(u)) / 2 with two vectors. A CPU never forms T, which would take memory; a GPU does, as that halves the
products and saves most of the launches. T T is never formed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ovss_core.class_purification.class_maps import ClassMaps
from ovss_core.class_purification.evidence import SoftmaxStatistics
from ovss_core.class_purification.regions import box_union, quantize, threshold_regions
from ovss_core.kernels import use_kernel

ROUNDS = 3
APPLICATIONS = 2
EPSILON = 1e-8
MOST_PATCHES = 1 << 12
"""Patches of a window that a program of a GPU holds in one row."""
FLATNESS = 1e-5
"""Range of a map, as a share of its peak, that float32 sums leave of a constant one."""


@dataclass(frozen=True)
class Affinity:
    """The attention of each window and the two vectors that normalize it.

    Attributes:
        attention: Mean over blocks and heads of the patch-patch attention; rows need not sum to 1.
        row_scale: u, the factor of each row.
        column_scale: v, the factor of each column.
        transfer: T, where it is formed.
    """

    attention: Float[Tensor, "windows patches patches"]
    row_scale: Float[Tensor, "windows patches"]
    column_scale: Float[Tensor, "windows patches"]
    transfer: Float[Tensor, "windows patches patches"] | None = None


def _reciprocal(sums: Tensor) -> Tensor:
    """Invert positive sums; an empty row or column keeps its zeros instead of turning into NaN."""
    return torch.where(sums > 0, 1 / sums.clamp_min(torch.finfo(sums.dtype).tiny), torch.zeros_like(sums))


def balance(attention: Float[Tensor, "windows patches patches"], rounds: int = ROUNDS) -> Affinity:
    """Find the vectors that `rounds` rounds of column-then-row normalization multiply the attention by.

    Args:
        attention: Non-negative [windows, N, N]; any float format, scaled in float32 or wider.
        rounds: Rounds of one column and one row normalization.

    Returns:
        The affinity; after the last round each row of diag(u) A diag(v) sums to 1. A row or column of zeros gets the
        factor 0, so that its patch neither gives nor receives.
    """
    attention = attention.to(torch.promote_types(attention.dtype, torch.float32))
    if use_kernel(attention) and attention.dtype == torch.float32 and attention.shape[1] <= MOST_PATCHES:
        from ovss_core.kernels.affinity_triton import launch_balance

        return Affinity(attention, *launch_balance(attention, rounds))
    row_scale = torch.ones_like(attention[:, :, 0])
    column_scale = row_scale
    for _ in range(rounds):
        column_scale = _reciprocal(torch.bmm(row_scale[:, None], attention)[:, 0])
        row_scale = _reciprocal(torch.bmm(attention, column_scale[:, :, None])[:, :, 0])
    return Affinity(attention, row_scale, column_scale)


def spread(
    affinity: Affinity, maps: Float[Tensor, "windows maps patches"]
) -> Float[Tensor, "windows maps patches"]:
    """Apply the symmetrized, normalized attention to maps, twice as FreeCP does.

    Args:
        affinity: The balanced attention of each window.
        maps: Any number of maps a window, patches row-major.

    Returns:
        T T applied to every map.
    """
    rows, columns = affinity.row_scale[:, None], affinity.column_scale[:, None]
    for _ in range(APPLICATIONS):
        if affinity.transfer is not None:
            maps = torch.bmm(maps, affinity.transfer)
            continue
        forward = torch.bmm(maps * rows, affinity.attention) * columns
        backward = torch.bmm(maps * columns, affinity.attention.mT) * rows
        maps = (forward + backward) / 2
    return maps


def refine(
    probability: ClassMaps,
    statistics: SoftmaxStatistics,
    affinity: Affinity,
    grid: tuple[int, int],
    box_threshold: float,
) -> ClassMaps:
    """Cut each map to its boxes, spread it along the attention, and normalize it: q = min-max of T T (B P).

    Args:
        probability: P of the classes worth refining.
        statistics: Of the same windows.
        affinity: Balanced attention of the windows.
        grid: Patch rows and columns.
        box_threshold: Share of a class's peak over its unit above which a patch belongs to a region.

    Returns:
        q in [0, 1]. A map below the threshold everywhere is 0.
    """
    normalized = probability.with_maps(statistics.normalize(probability.maps, probability.units.index))
    peaks = normalized.to_windows(quantize(normalized.extreme("amax")))
    regions = threshold_regions(quantize(normalized.maps), peaks, box_threshold)
    regions &= probability.to_windows(probability.used)[:, :, None]
    inside = box_union(regions.flatten(0, 1).unflatten(1, grid)).view_as(regions)
    return normalize_range(probability.with_maps(spread(affinity, normalized.maps * inside)))


def normalize_range(maps: ClassMaps) -> ClassMaps:
    """Min-max normalize each class's maps over its unit; an empty map stays 0.

    A map whose range is no more than rounding (a flat picture) becomes 1 throughout: stretching it, as the released
    code does, would let the order of additions decide the labels.
    """
    low = maps.to_windows(maps.extreme("amin"))[..., None]
    high = maps.to_windows(maps.extreme("amax"))[..., None]
    flat = (high > 0) & (high - low <= FLATNESS * high)
    return maps.with_maps(torch.where(flat, 1.0, (maps.maps - low) / (high - low + EPSILON)))
