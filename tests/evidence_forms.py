"""The plain forms of `ovss_core.kernels.evidence_triton`, launch by launch, by the functions of the general path."""

import torch
from torch import Tensor
from torch.nn import functional

from ovss_core.class_purification.class_maps import ClassMaps, first_places
from ovss_core.class_purification.evidence import (
    PhraseChunk,
    SoftmaxStatistics,
    active_classes,
    class_maximum,
)
from ovss_core.class_purification.placement import Units
from ovss_core.class_purification.refinement import normalize_range
from ovss_core.class_purification.regions import quantize
from ovss_core.class_purification.scores import released_bound, released_score
from ovss_core.kernels.evidence_triton import SLACK, Active, Ranks


def statistics(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_total = scores.logsumexp(0)
    least, most = (scores.amin(0) - log_total).exp(), (scores.amax(0) - log_total).exp()
    return log_total, least.amin(1), most.amax(1)


def peaks(scores: Tensor, ranks: Ranks, columns: int, log_total: Tensor, alone: bool) -> Tensor:
    return _log_probability(scores, ranks, columns, log_total, alone).amax(2).mT.contiguous()


def _log_probability(scores: Tensor, ranks: Ranks, columns: int, log_total: Tensor, alone: bool) -> Tensor:
    chunk = PhraseChunk(torch.arange(columns), torch.arange(len(scores)), tuple(ranks.sizes.tolist()))
    values = class_maximum(scores, chunk) - log_total
    return functional.logsigmoid(values) if alone else values


def active(
    window_peaks: Tensor,
    window_low: Tensor,
    window_high: Tensor,
    slots: Tensor,
    places: int,
    thresholds: Tensor | None,
    background: int,
    competes: bool,
    likely: bool,
) -> Active:
    highest = window_peaks[slots].amax(1).exp()
    low, high = window_low[slots].amin(1), window_high[slots].amax(1)
    columns = highest.shape[1]
    is_background = torch.arange(columns) == background
    if not competes:
        highest = highest.masked_fill(is_background, 0)
    chosen = active_classes(highest, SoftmaxStatistics(low[:, None], low, high))
    if thresholds is not None:
        chosen &= _promising(highest.double(), is_background, thresholds, likely)[0]
    seats = first_places(chosen, places)
    there = seats < columns
    place_of = torch.full((len(slots), columns + 1), -1, dtype=torch.int32)
    numbers = torch.arange(seats.shape[1], dtype=torch.int32).expand_as(seats)
    place_of.scatter_(1, seats, torch.where(there, numbers, -1))
    return Active(
        torch.where(there, seats, -1).int(), place_of[:, :columns], highest, low, high, chosen.sum(1).int()
    )


def _promising(
    highest: Tensor, is_background: Tensor, thresholds: Tensor, likely: bool
) -> tuple[Tensor, Tensor, Tensor]:
    bounds = released_bound(highest)
    foreground = highest.masked_fill(is_background, 0)
    best = (foreground == foreground.amax(1, keepdim=True)) & (foreground > 0)
    wanted = (bounds > thresholds[:, None] - SLACK) | is_background
    return wanted | best if likely else wanted, best, bounds


def _units(slots: Tensor, used: Tensor) -> Units:
    counts = used.sum(1)
    return Units(tuple(counts.tolist()), torch.arange(len(slots)).repeat_interleave(counts), slots, used)


def maps(
    scores: Tensor,
    ranks: Ranks,
    log_total: Tensor,
    slots: Tensor,
    used: Tensor,
    chosen: Active,
    levels: Tensor,
    alone: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    units, columns = _units(slots, used), chosen.place_of.shape[1]
    table = _log_probability(scores, ranks, columns, log_total, alone).transpose(0, 1)
    column = chosen.chosen[units.index].long()
    there = (column >= 0)[:, :, None]
    values = table.gather(1, column.clamp_min(0)[:, :, None].expand(-1, -1, table.shape[2]))
    probability = values.exp() * there
    statistics_ = SoftmaxStatistics(log_total, chosen.low, chosen.high)
    normalized = statistics_.normalize(probability, units.index)
    summits = units.reduce(quantize(normalized.amax(2)), "amax")[units.index]
    regions = (quantize(normalized) > levels[summits.long()][..., None]) & there
    return probability, normalized, regions


def refined(
    moved: Tensor, probability: Tensor, slots: Tensor, used: Tensor, chosen: Active, _: float, __: float
) -> tuple[Tensor, Tensor]:
    units, columns = _units(slots, used), chosen.place_of.shape[1]
    before = ClassMaps(units, chosen.chosen.long(), probability)
    after = normalize_range(before.with_maps(moved))
    values = released_score(before, after)
    table = values.new_zeros(len(slots), columns + 1)
    column = torch.where(chosen.chosen >= 0, chosen.chosen, columns).long()
    return after.maps, table.scatter_(1, column, values)[:, :columns].contiguous()


def null(
    ranked: Tensor,
    normal: Tensor,
    first: int,
    own: int,
    target: float,
    ceiling: float,
    floor: float,
    enough: float,
    least: float,
) -> Tensor:
    upper = ranked[:, first : first + len(normal)]
    weight = (upper > least).double()
    points = weight.sum(1)
    score = torch.logit((upper / ceiling).clamp(least, 1 - least))
    center, level = ((weight * values).sum(1) / points.clamp_min(1) for values in (normal, score))
    offset = weight * (normal - center[:, None])
    width = (offset * (normal - center[:, None])).sum(1).clamp_min(1e-9)
    line = level + ((offset * score).sum(1) / width).clamp_min(0) * (target - center)
    return torch.where(points >= enough, ceiling * line.sigmoid(), ranked[:, own].clamp_min(floor))


def decide(
    chosen: Active,
    table: Tensor,
    column_of: Tensor,
    thresholds: Tensor,
    most: int,
    background: int,
    competes: bool,
    likely: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    order = column_of.long()
    columns = len(order)
    is_background = torch.arange(columns) == background
    highest = chosen.peaks[:, order].double()
    wanted, best, bounds = _promising(highest, is_background, thresholds, likely)
    scores = torch.where(wanted, table[:, order], bounds)
    stays = scores.masked_fill(is_background, 0) > thresholds[:, None]
    if likely:
        stays |= best & ~stays.any(1, keepdim=True)
    if competes:
        stays |= is_background
    place_of = chosen.place_of[:, order]
    kept = first_places(stays & (place_of >= 0), most)
    there = kept < columns
    source = torch.where(there, place_of.gather(1, kept.clamp_max(columns - 1)), -1)
    scores = scores.float().masked_fill(is_background, torch.nan)
    return scores, torch.where(there, kept, -1), source.int(), stays.sum(1).int()


def take(maps_: Tensor, source: Tensor, index: Tensor) -> Tensor:
    place = source[index].long()[:, :, None].expand(-1, -1, maps_.shape[2])
    return torch.where(place >= 0, maps_.gather(1, place.clamp_min(0)), 0)


def needs(
    chosen: Tensor, distractors: Tensor | None, kept: Tensor, places: int, null_places: int, most: int
) -> tuple[Tensor, Tensor]:
    nulls = torch.zeros(1, dtype=torch.int32) if distractors is None else distractors
    needed = torch.stack([chosen.max(), nulls.max()]).long()
    fits = (chosen.max() <= places) & (nulls.max() <= null_places) & (kept.max() <= most)
    return needed, fits
