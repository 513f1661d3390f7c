"""How far refinement confirms a class: the score that FreeCP's redundancy purification keeps classes by.

A class that is in the image has a map that its window's attention leaves where it was; one that is not
has scattered responses which refinement moves. Released form: sum(P q) / (sum P + sum q), a test of
confidence as much as of place. Paper form: soft IoU of the map before and after refinement.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.affinity import Affinity, spread_rows
from ovss_core.class_purification.batch import Units
from ovss_core.class_purification.boxes import component_boxes, paint_boxes, quantise, threshold_regions
from ovss_core.class_purification.evidence import ActiveRows, SoftmaxStatistics, collect_rows

EPSILON = 1e-8
FLATNESS = 1e-5  # range of a map, as a share of its peak, that float32 sums leave of a constant one
ScoreRule = Callable[[ActiveRows, Tensor], Tensor]


@dataclass(frozen=True)
class ScoredClasses:
    """Scores of one chunk of classes, and the refined maps of those that are active.

    Attributes:
        scores: Redundancy score of each class in each unit; 0 for a pair that was not refined.
        window: Window of each map.
        column: Class column of each map.
        unit: Unit of each map.
        maps: q, refined maps min-max normalised per class over the unit.
    """

    scores: Float[Tensor, "classes units"]
    window: Int[Tensor, " rows"]
    column: Int[Tensor, " rows"]
    unit: Int[Tensor, " rows"]
    maps: Float[Tensor, "rows patches"]


def _pair_extreme(values: Tensor, rows: ActiveRows, how: str) -> Tensor:
    """Take "amin" or "amax" of one value a row over the rows of its pair, returned to each row."""
    result = values.new_zeros(rows.pairs)
    return result.scatter_reduce(0, rows.pair, values, how, include_self=False)[rows.pair]


def _pair_sum(values: Tensor, rows: ActiveRows) -> Tensor:
    """Sum over the patches of all rows of each pair, in float64 so that the order does not matter."""
    sums = values.new_zeros(rows.pairs, dtype=torch.float64)
    return sums.index_add_(0, rows.pair, values.sum(1, dtype=torch.float64))


def normalise_pairs(maps: Float[Tensor, "rows patches"], rows: ActiveRows) -> Float[Tensor, "rows patches"]:
    """Min-max normalise each pair's maps together; an empty map stays 0.

    A map whose range is no more than rounding (a flat picture) becomes 1 throughout: stretching it, as the
    released code does, would let the order of additions decide the labels.
    """
    low = _pair_extreme(maps.amin(1), rows, "amin")[:, None]
    high = _pair_extreme(maps.amax(1), rows, "amax")[:, None]
    flat = (high > 0) & (high - low <= FLATNESS * high)
    return torch.where(flat, 1.0, (maps - low) / (high - low + EPSILON))


def refine(
    rows: ActiveRows, affinity: Affinity, grid: tuple[int, int], box_threshold: float
) -> Float[Tensor, "rows patches"]:
    """Cut each map to its boxes, spread it along the attention and normalise it (FreeCP, released steps 4-5).

    Args:
        rows: Active maps.
        affinity: Balanced attention of all windows.
        grid: Patch rows and columns.
        box_threshold: Share of a pair's peak above which a patch belongs to a region.

    Returns:
        q in [0, 1]. A map below the threshold everywhere is 0.
    """
    levels = quantise(rows.normalised).view(-1, *grid)
    peaks = _pair_extreme(levels.flatten(1).amax(1), rows, "amax")
    regions = threshold_regions(levels, peaks, box_threshold)
    filled = regions.flatten(1).any(1).nonzero()[:, 0]
    masks = paint_boxes(component_boxes(regions[filled]), (len(filled), *grid)).flatten(1)
    refined = torch.zeros_like(rows.normalised)
    refined[filled] = spread_rows(affinity, rows.normalised[filled] * masks, rows.window[filled])
    return normalise_pairs(refined, rows)


def released_score(rows: ActiveRows, refined: Float[Tensor, "rows patches"]) -> Float[Tensor, " pairs"]:
    """Score pairs by sum(P q) / (sum P + sum q + 1e-8), sums over all windows of the unit.

    Never above `released_bound`.
    """
    overlap = _pair_sum(rows.probability * refined, rows)
    return overlap / (_pair_sum(rows.probability, rows) + _pair_sum(refined, rows) + EPSILON)


def released_bound(peaks: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Bound the released score of classes of peak probability m by m / (1 + m).

    It falls as more classes share the softmax, and saves refining a class that cannot be kept anyway.
    """
    return peaks / (1 + peaks)


def spatial_consistency(rows: ActiveRows, refined: Float[Tensor, "rows patches"]) -> Float[Tensor, " pairs"]:
    """Score pairs by the soft IoU of their map before and after refinement (FreeCP, paper).

    Both are min-max normalised per class over the unit, so that the score, in [0, 1], does not depend on
    how much probability the class got. A class whose refined map is empty scores 0.
    """
    raw = normalise_pairs(rows.probability, rows)
    union = _pair_sum(torch.maximum(raw, refined), rows)
    found = _pair_sum(refined, rows) > 0
    return torch.where(found, _pair_sum(torch.minimum(raw, refined), rows) / union.clamp_min(EPSILON), 0)


def score_classes(
    log_probability: Float[Tensor, "classes windows patches"],
    active: Bool[Tensor, "classes units"],
    statistics: SoftmaxStatistics,
    units: Units,
    affinity: Affinity,
    grid: tuple[int, int],
    box_threshold: float,
    rule: ScoreRule,
) -> ScoredClasses:
    """Refine and score the classes of one chunk in all units at once.

    Args:
        log_probability: Logarithm of each class's probability at each patch.
        active: The pairs worth refining.
        statistics: Softmax statistics of the windows.
        units: What decisions are made for.
        affinity: Balanced attention of the windows.
        grid: Patch rows and columns.
        box_threshold: See `refine`.
        rule: `released_score` or `spatial_consistency`.
    """
    rows = collect_rows(log_probability, active, statistics, units)
    refined = refine(rows, affinity, grid, box_threshold)
    scores = rule(rows, refined).view(-1, units.count)
    return ScoredClasses(scores, rows.window, rows.pair // units.count, rows.pair % units.count, refined)
