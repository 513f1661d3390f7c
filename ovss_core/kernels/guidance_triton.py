"""The kernels of SFP's repair of tokens and of what it derives from similarities of patches."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ovss_core.kernels import shared_memory
from ovss_core.kernels.averages import STEP, room_for_map

_TILE = 1 << 12
"""Numbers of tokens that one program repairs."""
_ROW_TILE = 1 << 14
"""Numbers of a similarity map that one program holds."""
_MOST_STAGES = 3
_STEP = 64
"""Channels that are multiplied at once."""


@triton.jit
def outliers_kernel(class_attention, self_attention, outliers, patches, factor, limit, COLUMNS: tl.constexpr):
    """Find the outliers of a window: candidates in the order of the class token's attention, `limit` at most."""
    start = tl.program_id(0).to(tl.int64) * patches
    column = tl.arange(0, COLUMNS)
    exists = column < patches
    attention = tl.load(class_attention + start + column, mask=exists, other=0.0)
    own = tl.load(self_attention + start + column, mask=exists, other=0.0)
    candidate = exists & (factor * attention > own)
    left = tl.where(candidate, attention, float("-inf"))
    found = tl.zeros([COLUMNS], tl.int32)
    for _ in range(limit):
        largest = tl.max(left, 0)
        place = tl.min(tl.where((left == largest) & (left > float("-inf")), column, COLUMNS), 0)
        found = tl.where(column == place, 1, found)
        left = tl.where(column == place, float("-inf"), left)
    tl.store(outliers + start + column, found.to(tl.int8), mask=exists)


@triton.jit
def repair_kernel(
    tokens,
    outliers,
    repaired,
    inverse,
    tokens_window,
    tokens_token,
    rows,
    height,
    width,
    channels,
    REPAIRS: tl.constexpr,
    STORES: tl.constexpr,
    NORMS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Replace outliers by the mean of their neighbors that are none, and find the length of each token."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    patches = height * width
    exists = row < rows
    window = row // patches
    place = row % patches
    known = (channel < channels)[None, :]
    start = tokens + window[:, None] * tokens_window + channel[None, :]
    value = tl.load(start + place[:, None] * tokens_token, mask=exists[:, None] & known, other=0.0)
    if REPAIRS:
        bad = exists & (tl.load(outliers + row, mask=exists, other=0) != 0)
        if (
            tl.max(bad.to(tl.int32), 0) > 0
        ):  # few tokens are outliers, and loads that are masked take their time as well
            y = place // width
            x = place % width
            total = tl.zeros([ROWS, CHANNELS], tl.float32)
            count = tl.zeros([ROWS], tl.float32)
            for dy in tl.static_range(-1, 2):
                for dx in tl.static_range(-1, 2):
                    there = bad & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
                    other = place + dy * width + dx
                    there = there & (tl.load(outliers + row + dy * width + dx, mask=there, other=1) == 0)
                    total += tl.load(
                        start + other[:, None] * tokens_token, mask=there[:, None] & known, other=0.0
                    ).to(tl.float32)
                    count += there.to(tl.float32)
            mean = (total / tl.maximum(count, 1.0)[:, None]).to(value.dtype)
            value = tl.where((bad & (count > 0))[:, None], mean, value)
    if STORES:
        tl.store(repaired + row[:, None] * channels + channel[None, :], value, mask=exists[:, None] & known)
    if NORMS:
        wide = value.to(tl.float32)
        length = tl.sqrt(tl.sum(wide * wide, 1))
        tl.store(inverse + row, 1.0 / tl.maximum(length, 1e-12), mask=exists)


@triton.jit
def similarity_kernel(
    patches,
    inverse,
    cosines,
    weights,
    totals,
    patches_window,
    patches_token,
    count,
    channels,
    cut,
    WEIGHS: tl.constexpr,
    CUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Multiply some patches of a window with all, and divide by their lengths.

    Leaves either the weights of an average, rows of cosines above the cut that sum to 1; or cosines, and the sums of
    their rows (above the cut if CUTS).
    """
    window = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    step = tl.arange(0, STEP)
    patches += window * patches_window
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, channels, STEP):
        channel = first + step
        one = tl.load(
            patches + row[:, None] * patches_token + channel[None, :],
            mask=(row < count)[:, None] & (channel < channels)[None, :],
            other=0.0,
        )
        other = tl.load(
            patches + column[None, :] * patches_token + channel[:, None],
            mask=(column < count)[None, :] & (channel < channels)[:, None],
            other=0.0,
        )
        product = tl.dot(one, other, product, input_precision="ieee")
    left = tl.load(inverse + window * count + row, mask=row < count, other=0.0)
    right = tl.load(inverse + window * count + column, mask=column < count, other=0.0)
    cosine = product * left[:, None] * right[None, :]
    weights += window * count * COLUMNS
    cosines += window * count * count
    place = row[:, None] * count + column[None, :]
    inside = (row < count)[:, None] & (column < count)[None, :]
    kept = tl.where(cosine >= cut, cosine, 0.0)
    if WEIGHS:
        weight = kept / (tl.sum(kept, 1) + 1e-6)[:, None]
        # columns behind the last are 0, which pads the rows
        padded = row[:, None] * COLUMNS + column[None, :]
        tl.store(weights + padded, weight.to(weights.dtype.element_ty), mask=(row < count)[:, None])
    else:
        tl.store(cosines + place, cosine, mask=inside)
        if CUTS:
            tl.store(totals + window * count + row, tl.sum(kept, 1), mask=row < count)
        else:
            tl.store(totals + window * count + row, tl.sum(cosine, 1), mask=row < count)


@triton.jit
def guidance_kernel(
    cosines,
    totals,
    weights,
    attention,
    count,
    cut,
    gain,
    CUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Make the weights of an average and attention out of some rows of cosines."""
    window = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    known = column < count
    mean = tl.sum(tl.load(totals + window * count + column, mask=known, other=0.0), 0) / count / count
    place = (window * count + row[:, None]) * count + column[None, :]
    # columns behind the last are 0, which pads the rows
    padded = (window * count + row[:, None]) * COLUMNS + column[None, :]
    inside = (row < count)[:, None] & known[None, :]
    cosine = tl.load(cosines + place, mask=inside, other=0.0)
    kept = tl.where(cosine >= cut, cosine, 0.0)
    weight = kept / (tl.sum(kept, 1) + 1e-6)[:, None]
    tl.store(weights + padded, weight.to(weights.dtype.element_ty), mask=(row < count)[:, None])
    score = gain * ((kept if CUTS else cosine) - mean)
    seen = known[None, :] & ((score >= 0) | (row[:, None] == column[None, :]) | (row[:, None] >= count))
    score = tl.where(seen, score, float("-inf"))
    share = tl.exp(score - tl.max(score, 1)[:, None])
    attended = share / tl.sum(share, 1)[:, None]
    tl.store(attention + padded, attended.to(attention.dtype.element_ty), mask=(row < count)[:, None])


def launch_outliers(
    class_attention: Tensor, self_attention: Tensor, factor: float, limit: int | None
) -> Tensor:
    """Run `outliers_kernel`; see `outliers.attention_outliers`."""
    windows, patches = class_attention.shape
    found = torch.empty(windows, patches, dtype=torch.int8, device=class_attention.device)
    outliers_kernel[(windows,)](
        class_attention.contiguous(),
        self_attention.contiguous(),
        found,
        patches,
        factor,
        patches if limit is None else min(limit, patches),
        COLUMNS=triton.next_power_of_2(patches),
        num_warps=2,
    )
    return found.view(torch.bool)


def launch_repair(
    tokens: Tensor, outliers: Tensor | None, grid: tuple[int, int], norms: bool
) -> tuple[Tensor, Tensor | None]:
    """Run `repair_kernel` on patch tokens; see `mitigation.repair_tokens`.

    Returns:
        The tokens, repaired where there are outliers; and one over each token's length if `norms`.
    """
    tokens = tokens if tokens.stride(2) == 1 else tokens.contiguous()
    windows, patches, channels = tokens.shape
    repaired = tokens if outliers is None else torch.empty_like(tokens, memory_format=torch.contiguous_format)
    inverse = torch.empty(windows, patches, dtype=torch.float32, device=tokens.device) if norms else None
    columns = triton.next_power_of_2(channels)
    rows = max(1, _TILE // columns)
    repair_kernel[(triton.cdiv(windows * patches, rows),)](
        tokens,
        tokens if outliers is None else outliers.contiguous().view(torch.int8),
        repaired,
        tokens if inverse is None else inverse,
        *tokens.stride()[:2],
        windows * patches,
        *grid,
        channels,
        REPAIRS=outliers is not None,
        STORES=outliers is not None,
        NORMS=norms,
        ROWS=rows,
        CHANNELS=columns,
        num_warps=4,
    )
    return repaired, inverse


def launch_weights(patches: Tensor, cut: float) -> Tensor:
    """Return the weights by which patches average those like them, in the patches' own number format."""
    patches, inverse = launch_repair(patches, None, (1, patches.shape[1]), True)
    weights = room_for_map(patches)
    _launch_similarity(patches, inverse, None, weights, None, cut, True)
    return weights[:, :, : patches.shape[1]]


def launch_guidance(
    patches: Tensor, outliers: Tensor, grid: tuple[int, int], cut: float, gain: float, cut_first: bool
) -> tuple[Tensor, Tensor]:
    """Return the weights of `launch_weights`, and the attention of `similarity.similarity_attention`.

    Args:
        patches: Of one layer.
        outliers: Patches that are repaired before.
        grid: Rows and columns of patches.
        cut: Cosines below it count nothing.
        gain: Factor on cosines in the softmax.
        cut_first: Attend by what the cut leaves, not by all cosines.
    """
    patches, inverse = launch_repair(patches, outliers, grid, True)
    windows, count, _ = patches.shape
    cosines = torch.empty(windows, count, count, dtype=torch.float32, device=patches.device)
    totals = torch.empty(windows, count, dtype=torch.float32, device=patches.device)
    _launch_similarity(patches, inverse, cosines, None, totals, cut, cut_first)
    weights, attention = room_for_map(patches), room_for_map(patches)
    columns = weights.shape[2]
    rows = max(1, _TILE // columns)
    guidance_kernel[(windows, triton.cdiv(count, rows))](
        cosines,
        totals,
        weights,
        attention,
        count,
        cut,
        gain,
        CUTS=cut_first,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=4,
    )
    return weights[:, :, :count], attention[:, :, :count]


def _launch_similarity(
    patches: Tensor,
    inverse: Tensor | None,
    cosines: Tensor | None,
    weights: Tensor | None,
    totals: Tensor | None,
    cut: float,
    cut_first: bool,
) -> None:
    windows, count, channels = patches.shape
    columns = max(triton.next_power_of_2(count), STEP)
    rows = min(max(_ROW_TILE // columns, 16), 64)
    step = _STEP if patches.element_size() <= 2 else _STEP // 2
    stage = (rows + columns) * step * patches.element_size()
    similarity_kernel[(windows, triton.cdiv(count, rows))](
        patches,
        inverse,
        inverse if cosines is None else cosines,
        patches if weights is None else weights,
        inverse if totals is None else totals,
        *patches.stride()[:2],
        count,
        channels,
        cut,
        WEIGHS=weights is not None,
        CUTS=cut_first,
        ROWS=rows,
        COLUMNS=columns,
        STEP=step,
        num_warps=8,
        num_stages=max(1, min(_MOST_STAGES, shared_memory(patches.device) // stage)),
    )
