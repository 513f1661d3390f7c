"""The kernels of FreeCP where images decide and shapes are known: `class_purification.on_device` strings them together.

A program works on a window, on an image, or on one place of an image, and visits the windows of its image one by one;
``slots`` lists them, and repeats the first where ``used`` is 0.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1 << 12
_CLASSES_AT_ONCE = 16
LEAST_LEVEL, SLACK = 1 - 1e-3, 1e-6
"""As `evidence.ACTIVITY_SLACK` and `purifier.BOUND_SLACK` have it."""


class Ranks(NamedTuple):
    """Which rows of a table of phrases are the first, second, ... phrases of its columns: first row, and how many."""

    starts: Tensor
    sizes: Tensor


class Active(NamedTuple):
    """The columns of each image whose maps are formed.

    Attributes:
        chosen: Column of each place, -1 in unused ones, int32 [images, places].
        place_of: Place of each column, or -1, int32 [images, columns].
        peaks: Largest probability of each column, float32 [images, columns].
        low, high: Smallest and largest probability of any phrase, float32 [images].
        counts: Columns that asked for a place, int32 [images].
    """

    chosen: Tensor
    place_of: Tensor
    peaks: Tensor
    low: Tensor
    high: Tensor
    counts: Tensor


@triton.jit
def statistics_kernel(
    scores,
    log_total,
    low,
    high,
    phrases,
    windows,
    patches,
    PHRASES: tl.constexpr,
    PATCHES: tl.constexpr,
):
    """Find the softmax's denominator at each patch of a window, and the window's extremes."""
    window = tl.program_id(0).to(tl.int64)
    patch = tl.arange(0, PATCHES)
    there = patch < patches
    least = tl.zeros([PATCHES], tl.float32) + float("inf")
    most = tl.zeros([PATCHES], tl.float32) + float("-inf")
    total = tl.zeros([PATCHES], tl.float32)
    for first in range(0, phrases, PHRASES):
        phrase = first + tl.arange(0, PHRASES)
        known = (phrase < phrases)[:, None]
        place = (phrase.to(tl.int64)[:, None] * windows + window) * patches + patch[None, :]
        value = tl.load(scores + place, mask=known & there[None, :], other=0.0)
        least = tl.minimum(least, tl.min(tl.where(known, value, float("inf")), 0))
        value = tl.where(known, value, float("-inf"))
        larger = tl.maximum(most, tl.max(value, 0))
        total = total * tl.exp(most - larger) + tl.sum(tl.exp(value - larger[None, :]), 0)
        most = larger
    summed = most + tl.log(total)
    tl.store(log_total + window * patches + patch, summed, mask=there)
    tl.store(low + window, tl.min(tl.where(there, tl.exp(least - summed), float("inf")), 0))
    tl.store(high + window, tl.max(tl.where(there, tl.exp(most - summed), 0.0), 0))


@triton.jit
def _alone(value):
    """Return the logarithm of the probability of a phrase that joins the vocabulary alone."""
    return tl.minimum(value, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(value)))


@triton.jit
def peaks_kernel(
    scores,
    starts,
    sizes,
    log_total,
    peaks,
    columns,
    windows,
    patches,
    ranks,
    ALONE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PATCHES: tl.constexpr,
):
    """Find the logarithm of the largest probability of some columns in a window."""
    window = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    peak = tl.zeros([COLUMNS], tl.float32) + float("-inf")
    for begin in range(0, patches, PATCHES):
        patch = begin + tl.arange(0, PATCHES)
        there = (patch < patches)[None, :]
        best = tl.zeros([COLUMNS, PATCHES], tl.float32) + float("-inf")
        for rank in range(ranks):
            row = tl.load(starts + rank) + column
            known = (column < tl.load(sizes + rank))[:, None]
            place = (row.to(tl.int64)[:, None] * windows + window) * patches + patch[None, :]
            best = tl.maximum(best, tl.load(scores + place, mask=known & there, other=float("-inf")))
        total = tl.load(log_total + window * patches + patch, mask=patch < patches, other=0.0)
        value = best - total[None, :]
        if ALONE:
            value = _alone(value)
        peak = tl.maximum(peak, tl.max(tl.where(there, value, float("-inf")), 1))
    tl.store(peaks + window * columns + column, peak, mask=column < columns)


@triton.jit
def _scaled(probability, low, high):
    """Map probabilities to [0, 1] by an image's extremes; without contrast to 1."""
    span = high - low
    scaled = (probability - low) / tl.where(span > 0, span, 1.0)
    return tl.minimum(tl.maximum(tl.where(span > 0, scaled, 1.0), 0.0), 1.0)


@triton.jit
def _promising(peak, is_background, threshold, SLACK: tl.constexpr, LIKELY: tl.constexpr):
    """Say which classes could be kept, which is the most likely one, and what no score exceeds."""
    bound = peak / (1.0 + peak)
    wanted = (bound > threshold - SLACK) | is_background
    foreground = tl.where(is_background, 0.0, peak)
    likely = (foreground == tl.max(foreground, 0)) & (foreground > 0)
    if LIKELY:
        wanted = wanted | likely
    return wanted, likely, bound


@triton.jit
def active_kernel(
    window_peaks,
    window_low,
    window_high,
    slots,
    thresholds,
    chosen,
    place_of,
    peaks,
    low,
    high,
    counts,
    columns,
    slot_count,
    places,
    background,
    TESTS: tl.constexpr,
    COMPETES: tl.constexpr,
    LIKELY: tl.constexpr,
    LEAST: tl.constexpr,
    SLACK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Give the columns of an image that are worth a map a place each."""
    unit = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    there = column < columns
    window = tl.load(slots + unit * slot_count)
    least = tl.load(window_low + window)
    most = tl.load(window_high + window)
    peak = tl.load(window_peaks + window * columns + column, mask=there, other=float("-inf"))
    for slot in range(1, slot_count):
        window = tl.load(slots + unit * slot_count + slot)
        least = tl.minimum(least, tl.load(window_low + window))
        most = tl.maximum(most, tl.load(window_high + window))
        own = tl.load(window_peaks + window * columns + column, mask=there, other=float("-inf"))
        peak = tl.maximum(peak, own)
    peak = tl.exp(peak)
    is_background = column == background
    if not COMPETES:
        peak = tl.where(is_background, 0.0, peak)
    active = there & (_scaled(peak, least, most) * 255.0 >= LEAST)
    if TESTS:
        threshold = tl.load(thresholds + unit)
        wanted, _, _ = _promising(peak.to(tl.float64), is_background, threshold, SLACK, LIKELY)
        active = active & wanted
    place = tl.cumsum(active.to(tl.int32), 0) - 1
    seated = active & (place < places)
    count = tl.sum(active.to(tl.int32), 0)
    tl.store(place_of + unit * columns + column, tl.where(seated, place, -1), mask=there)
    tl.store(chosen + unit * places + place, column, mask=seated)
    left = tl.arange(0, PLACES)
    tl.store(
        chosen + unit * places + left,
        tl.zeros([PLACES], tl.int32) - 1,
        mask=(left >= count) & (left < places),
    )
    tl.store(peaks + unit * columns + column, peak, mask=there)
    tl.store(low + unit, least)
    tl.store(high + unit, most)
    tl.store(counts + unit, count)


@triton.jit
def maps_kernel(
    scores,
    starts,
    sizes,
    log_total,
    slots,
    used,
    chosen,
    low,
    high,
    levels,
    probability,
    normalized,
    regions,
    places,
    windows,
    patches,
    ranks,
    slot_count,
    ALONE: tl.constexpr,
    PATCHES: tl.constexpr,
):
    """Form the probability map of one place of an image, the same between its extremes, and its region."""
    unit = tl.program_id(0).to(tl.int64)
    seat = tl.program_id(1)
    patch = tl.arange(0, PATCHES)
    there = patch < patches
    column = tl.load(chosen + unit * places + seat)
    least = tl.load(low + unit)
    most = tl.load(high + unit)
    summit = tl.zeros([PATCHES], tl.float32)
    for slot in range(slot_count):
        window = tl.load(slots + unit * slot_count + slot)
        own = patch < tl.where(tl.load(used + unit * slot_count + slot) != 0, patches, 0)
        best = tl.zeros([PATCHES], tl.float32) + float("-inf")
        for rank in range(ranks):
            # a whole vector is masked by a number, as the interpreter knows no mask that joins one with a truth value
            known = patch < tl.where((column >= 0) & (column < tl.load(sizes + rank)), patches, 0)
            row = (tl.load(starts + rank) + column).to(tl.int64)
            value = tl.load(
                scores + (row * windows + window) * patches + patch, mask=known, other=float("-inf")
            )
            best = tl.maximum(best, value)
        value = best - tl.load(log_total + window * patches + patch, mask=there, other=0.0)
        if ALONE:
            value = _alone(value)
        value = tl.exp(value)
        scaled = _scaled(value, least, most)
        target = (window * places + seat) * patches + patch
        tl.store(probability + target, value, mask=own)
        tl.store(normalized + target, scaled, mask=own)
        summit = tl.maximum(summit, tl.where(there, scaled, 0.0))
    level = tl.load(levels + (tl.max(summit, 0) * 255.0).to(tl.int32)).to(tl.int32)
    tl.debug_barrier()
    for slot in range(slot_count):
        window = tl.load(slots + unit * slot_count + slot)
        own = patch < tl.where(tl.load(used + unit * slot_count + slot) != 0, patches, 0)
        target = (window * places + seat) * patches + patch
        scaled = tl.load(normalized + target, mask=own, other=0.0)
        region = ((scaled * 255.0).to(tl.int32) > level) & (column >= 0)
        tl.store(regions + target, region.to(tl.int8), mask=own)


@triton.jit
def refined_kernel(
    spread,
    probability,
    slots,
    used,
    chosen,
    refined,
    table,
    columns,
    places,
    patches,
    slot_count,
    FLATNESS: tl.constexpr,
    EPSILON: tl.constexpr,
    PATCHES: tl.constexpr,
):
    """Stretch the spread map of one place of an image to [0, 1], and score its column."""
    unit = tl.program_id(0).to(tl.int64)
    seat = tl.program_id(1)
    patch = tl.arange(0, PATCHES)
    there = patch < patches
    least = tl.zeros([PATCHES], tl.float32) + float("inf")
    most = tl.zeros([PATCHES], tl.float32) + float("-inf")
    for slot in range(slot_count):
        window = tl.load(slots + unit * slot_count + slot)
        value = tl.load(spread + (window * places + seat) * patches + patch, mask=there, other=0.0)
        least = tl.minimum(least, tl.where(there, value, float("inf")))
        most = tl.maximum(most, tl.where(there, value, float("-inf")))
    bottom = tl.min(least, 0)
    top = tl.max(most, 0)
    flat = (top > 0) & (top - bottom <= FLATNESS * top)
    both = tl.zeros([PATCHES], tl.float64)
    before = tl.zeros([PATCHES], tl.float64)
    after = tl.zeros([PATCHES], tl.float64)
    for slot in range(slot_count):
        window = tl.load(slots + unit * slot_count + slot)
        own = patch < tl.where(tl.load(used + unit * slot_count + slot) != 0, patches, 0)
        place = (window * places + seat) * patches + patch
        value = (tl.load(spread + place, mask=own, other=0.0) - bottom) / (top - bottom + EPSILON)
        value = tl.where(own, tl.where(flat, 1.0, value), 0.0)
        chance = tl.load(probability + place, mask=own, other=0.0)
        tl.store(refined + place, value, mask=own)
        both += (chance * value).to(tl.float64)
        before += chance.to(tl.float64)
        after += value.to(tl.float64)
    score = tl.sum(both, 0) / (tl.sum(before, 0) + tl.sum(after, 0) + EPSILON)
    column = tl.load(chosen + unit * places + seat)
    tl.store(table + unit * columns + column, score, mask=column >= 0)


@triton.jit
def null_kernel(
    ranked,
    normal,
    thresholds,
    distractors,
    first,
    count,
    own,
    TARGET: tl.constexpr,
    CEILING: tl.constexpr,
    FLOOR: tl.constexpr,
    ENOUGH: tl.constexpr,
    LEAST: tl.constexpr,
    RANKS: tl.constexpr,
):
    """Fit a line through the upper part of an image's null scores, and read the threshold off."""
    unit = tl.program_id(0).to(tl.int64)
    rank = tl.arange(0, RANKS)
    there = rank < count
    upper = tl.load(ranked + unit * distractors + first + rank, mask=there, other=0.0)
    along = tl.load(normal + rank, mask=there, other=0.0)
    weight = tl.where(there & (upper > LEAST), 1.0, 0.0).to(tl.float64)
    points = tl.sum(weight, 0)
    share = tl.minimum(tl.maximum(upper / CEILING, LEAST), 1.0 - LEAST)
    score = tl.log(share / (1.0 - share))
    center = tl.sum(weight * along, 0) / tl.maximum(points, 1.0)
    level = tl.sum(weight * score, 0) / tl.maximum(points, 1.0)
    offset = weight * (along - center)
    width = tl.sum(offset * (along - center), 0)
    slope = tl.sum(offset * score, 0) / tl.maximum(width, 1e-9)
    line = level + tl.maximum(slope, 0.0) * (TARGET - center)
    sample = tl.maximum(tl.load(ranked + unit * distractors + own), FLOOR)
    tl.store(thresholds + unit, tl.where(points >= ENOUGH, CEILING / (1.0 + tl.exp(-line)), sample))


@triton.jit
def decide_kernel(
    peaks,
    table,
    place_of,
    column_of,
    thresholds,
    scores,
    kept,
    source,
    counts,
    columns,
    most,
    background,
    COMPETES: tl.constexpr,
    LIKELY: tl.constexpr,
    SLACK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Keep the classes of an image whose score is above its threshold, ascending."""
    unit = tl.program_id(0).to(tl.int64)
    class_ = tl.arange(0, COLUMNS)
    there = class_ < columns
    own = unit * columns + tl.load(column_of + class_, mask=there, other=0)
    peak = tl.load(peaks + own, mask=there, other=0.0).to(tl.float64)
    threshold = tl.load(thresholds + unit)
    is_background = class_ == background
    wanted, likely, bound = _promising(peak, is_background, threshold, SLACK, LIKELY)
    score = tl.where(wanted, tl.load(table + own, mask=there, other=0.0), bound)
    stays = there & (tl.where(is_background, 0.0, score) > threshold)
    if LIKELY:
        alive = tl.max(stays.to(tl.int32), 0)
        stays = stays | (likely & (class_ < tl.where(alive == 0, columns, 0)))
    if COMPETES:
        stays = stays | is_background
    from_place = tl.load(place_of + own, mask=there, other=-1)
    seated = stays & (from_place >= 0)
    place = tl.cumsum(seated.to(tl.int32), 0) - 1
    found = tl.sum(seated.to(tl.int32), 0)
    inside = seated & (place < most)
    tl.store(kept + unit * most + place, class_.to(tl.int64), mask=inside)
    tl.store(source + unit * most + place, from_place, mask=inside)
    left = tl.arange(0, PLACES)
    unused = (left >= found) & (left < most)
    tl.store(kept + unit * most + left, tl.zeros([PLACES], tl.int64) - 1, mask=unused)
    tl.store(source + unit * most + left, tl.zeros([PLACES], tl.int32) - 1, mask=unused)
    tl.store(counts + unit, tl.sum(stays.to(tl.int32), 0))
    tl.store(
        scores + unit * columns + class_,
        tl.where(is_background, float("nan"), score.to(tl.float32)),
        mask=there,
    )


@triton.jit
def take_kernel(refined, source, index, kept, places, most, patches, PATCHES: tl.constexpr):
    """Copy the map of one kept class of a window, or zeros."""
    window = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1)
    from_place = tl.load(source + tl.load(index + window) * most + place)
    patch = tl.arange(0, PATCHES)
    value = tl.load(
        refined + (window * places + from_place) * patches + patch,
        mask=patch < tl.where(from_place >= 0, patches, 0),
        other=0.0,
    )
    tl.store(kept + (window * most + place) * patches + patch, value, mask=patch < patches)


@triton.jit
def needs_kernel(
    active,
    distractors,
    kept,
    needed,
    complete,
    units,
    places,
    null_places,
    most,
    NULLS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Find what the fullest image needed, and whether there was room for it."""
    unit = tl.arange(0, UNITS)
    there = unit < units
    classes = tl.max(tl.load(active + unit, mask=there, other=0), 0)
    nulls = 0
    if NULLS:
        nulls = tl.max(tl.load(distractors + unit, mask=there, other=0), 0)
    fullest = tl.max(tl.load(kept + unit, mask=there, other=0), 0)
    tl.store(needed, classes.to(tl.int64))
    tl.store(needed + 1, nulls)
    fits = (classes <= places) & (nulls <= null_places) & (fullest <= most)
    tl.store(complete, fits.to(tl.int8))


def launch_statistics(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logarithm of the denominator [windows, patches], and each window's least and largest probability.

    Args:
        scores: Logits, contiguous float32 [phrases, windows, patches].
    """
    phrases, windows, patches = scores.shape
    log_total = scores.new_empty(windows, patches)
    low, high = scores.new_empty(2, windows).unbind()
    width = triton.next_power_of_2(patches)
    statistics_kernel[(windows,)](
        scores,
        log_total,
        low,
        high,
        phrases,
        windows,
        patches,
        PHRASES=max(1, _TILE // width),
        PATCHES=width,
        num_warps=4,
    )
    return log_total, low, high


def launch_peaks(scores: Tensor, ranks: Ranks, columns: int, log_total: Tensor, alone: bool) -> Tensor:
    """Return the logarithm of the largest probability of each column [windows, columns].

    Args:
        scores: As above; its rows in the order of `ranks`.
        alone: Whether each column joins the vocabulary by itself, as distractors do.
    """
    _, windows, patches = scores.shape
    peaks = scores.new_empty(windows, columns)
    peaks_kernel[(windows, triton.cdiv(columns, _CLASSES_AT_ONCE))](
        scores,
        *ranks,
        log_total,
        peaks,
        columns,
        windows,
        patches,
        len(ranks.starts),
        ALONE=alone,
        COLUMNS=_CLASSES_AT_ONCE,
        PATCHES=min(triton.next_power_of_2(patches), 256),
        num_warps=4,
    )
    return peaks


def launch_active(
    peaks: Tensor,
    low: Tensor,
    high: Tensor,
    slots: Tensor,
    places: int,
    thresholds: Tensor | None,
    background: int,
    competes: bool,
    likely: bool,
) -> Active:
    """Choose the columns whose maps are formed.

    Args:
        peaks, low, high: Of windows.
        slots: Windows of each image.
        places: Of an image.
        thresholds: Scores that must be within reach; None chooses whatever clears one level.
        background: Column of the background class, or -1.
        competes: Whether that class may be kept.
        likely: Whether an image keeps its most likely class at least.
    """
    units, columns, device = len(slots), peaks.shape[1], peaks.device
    made = Active(
        torch.empty(units, places, dtype=torch.int32, device=device),
        torch.empty(units, columns, dtype=torch.int32, device=device),
        peaks.new_empty(units, columns),
        peaks.new_empty(units),
        peaks.new_empty(units),
        torch.empty(units, dtype=torch.int32, device=device),
    )
    active_kernel[(units,)](
        peaks,
        low,
        high,
        slots.contiguous(),
        peaks if thresholds is None else thresholds,
        *made,
        columns,
        slots.shape[1],
        places,
        background,
        TESTS=thresholds is not None,
        COMPETES=competes,
        LIKELY=likely,
        LEAST=LEAST_LEVEL,
        SLACK=SLACK,
        COLUMNS=triton.next_power_of_2(columns),
        PLACES=triton.next_power_of_2(places),
        num_warps=4,
    )
    return made


def launch_maps(
    scores: Tensor,
    ranks: Ranks,
    log_total: Tensor,
    slots: Tensor,
    used: Tensor,
    active: Active,
    levels: Tensor,
    alone: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return probability maps, the same in [0, 1], and regions (bool), all [windows, places, patches].

    Args:
        used: Which slots hold a window of their own.
        levels: The threshold of each 8-bit peak, int16.
    """
    _, windows, patches = scores.shape
    units, places = active.chosen.shape
    probability, normalized = scores.new_empty(2, windows, places, patches).unbind()
    regions = torch.empty(windows, places, patches, dtype=torch.int8, device=scores.device)
    maps_kernel[(units, places)](
        scores,
        *ranks,
        log_total,
        slots.contiguous(),
        used.contiguous().view(torch.int8),
        active.chosen,
        active.low,
        active.high,
        levels,
        probability,
        normalized,
        regions,
        places,
        windows,
        patches,
        len(ranks.starts),
        slots.shape[1],
        ALONE=alone,
        PATCHES=triton.next_power_of_2(patches),
        num_warps=4,
    )
    return probability, normalized, regions.view(torch.bool)


def launch_refined(
    spread: Tensor,
    probability: Tensor,
    slots: Tensor,
    used: Tensor,
    active: Active,
    flatness: float,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Return refined maps [windows, places, patches], and scores float64 [images, columns], 0 without a place.

    Args:
        flatness, epsilon: As `refinement` has them.
    """
    _, places, patches = spread.shape
    units, columns = active.place_of.shape
    refined = torch.empty_like(spread)
    table = torch.zeros(units, columns, dtype=torch.float64, device=spread.device)
    refined_kernel[(units, places)](
        spread.contiguous(),
        probability,
        slots.contiguous(),
        used.contiguous().view(torch.int8),
        active.chosen,
        refined,
        table,
        columns,
        places,
        patches,
        slots.shape[1],
        FLATNESS=flatness,
        EPSILON=epsilon,
        PATCHES=triton.next_power_of_2(patches),
        num_warps=4,
    )
    return refined, table


def launch_null(
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
    """Return the threshold of each image; see `null.null_threshold`.

    Args:
        ranked: Null scores, descending, float64 [images, distractors].
        normal: Normal quantiles of the ranks that are fitted, from `first` on.
        own: Rank of the sample's own quantile.
        target: Normal quantile of the threshold.
        enough: Scores above `least` that a line is fitted through.
    """
    units, distractors = ranked.shape
    thresholds = ranked.new_empty(units)
    null_kernel[(units,)](
        ranked.contiguous(),
        normal,
        thresholds,
        distractors,
        first,
        len(normal),
        own,
        TARGET=target,
        CEILING=ceiling,
        FLOOR=floor,
        ENOUGH=enough,
        LEAST=least,
        RANKS=max(triton.next_power_of_2(len(normal)), 16),
        num_warps=4,
    )
    return thresholds


def launch_decide(
    active: Active,
    table: Tensor,
    column_of: Tensor,
    thresholds: Tensor,
    most: int,
    background: int,
    competes: bool,
    likely: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scores float32 [images, classes], kept classes and the places of their maps [images, most], and their number.

    Args:
        column_of: Column of each class.
        background: The background class, or -1.
    """
    units, columns = active.place_of.shape
    device = table.device
    scores = torch.empty(units, columns, dtype=torch.float32, device=device)
    kept = torch.empty(units, most, dtype=torch.int64, device=device)
    source = torch.empty(units, most, dtype=torch.int32, device=device)
    counts = torch.empty(units, dtype=torch.int32, device=device)
    decide_kernel[(units,)](
        active.peaks,
        table,
        active.place_of,
        column_of,
        thresholds,
        scores,
        kept,
        source,
        counts,
        columns,
        most,
        background,
        COMPETES=competes,
        LIKELY=likely,
        SLACK=SLACK,
        COLUMNS=triton.next_power_of_2(columns),
        PLACES=triton.next_power_of_2(most),
        num_warps=4,
    )
    return scores, kept, source, counts


def launch_take(refined: Tensor, source: Tensor, index: Tensor) -> Tensor:
    """Return the maps of kept classes [windows, most, patches], 0 in unused places.

    Args:
        source: Place of each map, or -1, [images, most].
        index: Image of each window.
    """
    windows, places, patches = refined.shape
    most = source.shape[1]
    kept = refined.new_empty(windows, most, patches)
    take_kernel[(windows, most)](
        refined,
        source,
        index,
        kept,
        places,
        most,
        patches,
        PATCHES=triton.next_power_of_2(patches),
        num_warps=2,
    )
    return kept


def launch_needs(
    active: Tensor, distractors: Tensor | None, kept: Tensor, places: int, null_places: int, most: int
) -> tuple[Tensor, Tensor]:
    """Return how many maps of classes and of distractors the fullest image needed, and whether everything had room."""
    needed = torch.empty(2, dtype=torch.int64, device=kept.device)
    complete = torch.empty(1, dtype=torch.int8, device=kept.device)
    needs_kernel[(1,)](
        active,
        active if distractors is None else distractors,
        kept,
        needed,
        complete,
        len(kept),
        places,
        null_places,
        most,
        NULLS=distractors is not None,
        UNITS=triton.next_power_of_2(len(kept)),
        num_warps=1,
    )
    return needed, complete.view(torch.bool)[0]
