"""The kernels of `attention.attend_with_mean`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ovss_core.kernels import shared_memory

TILE, WARPS = (128, 128), 8
"""Rows and columns of the mean that one program holds, where sums are known, and its warps."""
_NUMBERS = 1 << 14
"""Numbers of the mean that one program holds otherwise; with the scores of the head at hand they fill its registers."""
_MOST_STAGES = 3
"""Heads whose tables are fetched ahead while one is worked on; more did not pay on an H200."""


@triton.jit
def head_mean_kernel(
    query,
    key,
    log_sums,
    mean,
    total,
    query_window,
    query_head,
    query_token,
    key_window,
    key_head,
    key_token,
    sums_window,
    sums_head,
    tokens,
    depth,
    heads,
    first,
    scale,
    KNOWN: tl.constexpr,
    KEEPS: tl.constexpr,
    ADDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Average a tile of a window's attention over its heads; the last axis of query and key is contiguous.

    The logarithms of the sums that the softmax divides by are KNOWN, or the tile holds whole rows.
    """
    # a window's tables are found by 64 bits once, and numbers inside them by 32
    window = tl.program_id(0).to(tl.int64)
    query += window * query_window
    key += window * key_window
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.arange(0, DEPTH)
    binary = scale * 1.4426950408889634  # for powers of 2
    summed = tl.zeros([ROWS, COLUMNS], tl.float32)
    for head in range(heads):
        asks = tl.load(
            query + head * query_head + row[:, None] * query_token + channel[None, :],
            mask=(row[:, None] < tokens) & (channel[None, :] < depth),
            other=0.0,
        )
        answers = tl.load(
            key + head * key_head + column[None, :] * key_token + channel[:, None],
            mask=(column[None, :] < tokens) & (channel[:, None] < depth),
            other=0.0,
        )
        score = tl.dot(asks, answers, input_precision="ieee")
        if KNOWN:
            # rows and columns behind the last get numbers that are not stored
            log_sum = tl.load(
                log_sums + window * sums_window + head * sums_head + row, mask=row < tokens, other=0.0
            )
            summed += tl.exp2(score * binary - (log_sum * 1.4426950408889634)[:, None])
        else:
            score = tl.where(column[None, :] < tokens, score * binary, float("-inf"))
            weight = tl.exp2(score - tl.max(score, 1)[:, None])
            summed += weight * (1.0 / tl.sum(weight, 1))[:, None]
    summed = summed / heads
    if KEEPS:
        place = row[:, None] * tokens + column[None, :]
        tl.store(
            mean + window * tokens * tokens + place,
            summed,
            mask=(row[:, None] < tokens) & (column[None, :] < tokens),
        )
    if ADDS:
        patches = tokens - first
        total += window * patches * patches
        place = (row[:, None] - first) * patches + column[None, :] - first
        inside = (row >= first) & (row < tokens)
        inside = inside[:, None] & ((column >= first) & (column < tokens))[None, :]
        tl.store(total + place, tl.load(total + place, mask=inside, other=0.0) + summed, mask=inside)


def launch_mean(
    query: Tensor, key: Tensor, log_sums: Tensor, scale: float, total: Tensor | None, whole: bool
) -> Tensor | None:
    """Return the mean of `attention.attend_with_mean` (None if it is not wanted whole), and add it to `total`.

    Args:
        query, key, scale, total, whole: As there.
        log_sums: Natural logarithm of the sum of each row's exponentials, float32 [windows, heads, tokens or more].
    """
    return _launch(query, key, log_sums, scale, total, whole, TILE)


def launch_mean_with_sums(
    query: Tensor, key: Tensor, scale: float, total: Tensor | None, whole: bool
) -> Tensor | None:
    """Do as `launch_mean`, and find the sums on the way."""
    columns = max(triton.next_power_of_2(query.shape[2]), 16)
    return _launch(query, key, None, scale, total, whole, (min(max(_NUMBERS // columns, 16), 64), columns))


def _launch(
    query: Tensor,
    key: Tensor,
    log_sums: Tensor | None,
    scale: float,
    total: Tensor | None,
    whole: bool,
    tile: tuple[int, int],
) -> Tensor | None:
    query, key = (table if table.stride(3) == 1 else table.contiguous() for table in (query, key))
    windows, heads, tokens, depth = query.shape
    rows, columns = tile
    channels = max(triton.next_power_of_2(depth), 16)
    stage = (rows + columns) * channels * key.element_size()
    mean = torch.empty(windows, tokens, tokens, dtype=torch.float32, device=query.device) if whole else None
    head_mean_kernel[(windows, triton.cdiv(tokens, rows), triton.cdiv(tokens, columns))](
        query,
        key,
        query if log_sums is None else log_sums,
        query if mean is None else mean,
        query if total is None else total,
        *query.stride()[:3],
        *key.stride()[:3],
        *(query if log_sums is None else log_sums).stride()[:2],
        tokens,
        depth,
        heads,
        0 if total is None else tokens - total.shape[1],
        scale,
        KNOWN=log_sums is not None,
        KEEPS=whole,
        ADDS=total is not None,
        ROWS=rows,
        COLUMNS=columns,
        DEPTH=channels,
        num_warps=WARPS if log_sums is not None else 8,
        num_stages=max(1, min(_MOST_STAGES, shared_memory(key.device) // stage)),
    )
    return mean
