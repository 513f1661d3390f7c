"""The kernel of `attention.attend_with_mean`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ovss_core.kernels import shared_memory

_TILE = 1 << 14
"""Numbers of the mean that one program holds; with the scores of the head at hand they fill its registers."""
_MOST_STAGES = 3
"""Heads whose tables are fetched ahead while one is worked on; more did not pay on an H200."""


@triton.jit
def head_mean_kernel(
    query,
    key,
    mean,
    query_window,
    query_head,
    query_token,
    key_window,
    key_head,
    key_token,
    tokens,
    depth,
    heads,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Average some rows of a window's attention over its heads; the last axis of query and key is contiguous."""
    window = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    channel = tl.arange(0, DEPTH)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for head in range(heads):
        asks = tl.load(
            query + window * query_window + head * query_head + row[:, None] * query_token + channel[None, :],
            mask=(row[:, None] < tokens) & (channel[None, :] < depth),
            other=0.0,
        )
        answers = tl.load(
            key + window * key_window + head * key_head + column[None, :] * key_token + channel[:, None],
            mask=(column[None, :] < tokens) & (channel[:, None] < depth),
            other=0.0,
        )
        score = tl.dot(asks, answers, input_precision="ieee") * (
            scale * 1.4426950408889634
        )  # for powers of 2
        score = tl.where(column[None, :] < tokens, score, float("-inf"))
        weight = tl.exp2(score - tl.max(score, 1)[:, None])
        total += weight * (1.0 / tl.sum(weight, 1))[:, None]
    place = (window * tokens + row[:, None]) * tokens + column[None, :]
    inside = (row[:, None] < tokens) & (column[None, :] < tokens)
    tl.store(mean + place, total / heads, mask=inside)


def launch_head_mean(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Run the kernel; see `attention.attend_with_mean`."""
    query, key = (table if table.stride(3) == 1 else table.contiguous() for table in (query, key))
    windows, heads, tokens, depth = query.shape
    columns = max(triton.next_power_of_2(tokens), 16)
    rows = min(max(_TILE // columns, 16), 64)
    depth_padded = max(triton.next_power_of_2(depth), 16)
    stage = (columns + rows) * depth_padded * key.element_size()
    mean = torch.empty(windows, tokens, tokens, dtype=torch.float32, device=query.device)
    head_mean_kernel[(windows, triton.cdiv(tokens, rows))](
        query,
        key,
        mean,
        *query.stride()[:3],
        *key.stride()[:3],
        tokens,
        depth,
        heads,
        scale,
        ROWS=rows,
        COLUMNS=columns,
        DEPTH=depth_padded,
        num_warps=8,
        num_stages=max(1, min(_MOST_STAGES, shared_memory(key.device) // stage)),
    )
    return mean
