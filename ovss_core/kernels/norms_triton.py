"""The kernel of `norms`."""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

_TILE = 1 << 12
"""Numbers that one program holds."""


@triton.jit
def add_norm_kernel(
    tokens,
    added,
    weight,
    bias,
    summed,
    normed,
    total,
    tokens_window,
    tokens_token,
    added_window,
    added_token,
    rows,
    count,
    width,
    epsilon,
    ADDS: tl.constexpr,
    TOTALS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add, and normalize, some tokens; results and `total` are contiguous, `count` are the tokens of a window."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    window = (row // count)[:, None]
    token = (row % count)[:, None]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    value = tl.load(
        tokens + window * tokens_window + token * tokens_token + column[None, :], mask=inside, other=0.0
    ).to(tl.float32)
    if ADDS:
        more = tl.load(
            added + window * added_window + token * added_token + column[None, :], mask=inside, other=0.0
        )
        rounded = (value + more.to(tl.float32)).to(summed.dtype.element_ty)
        tl.store(summed + place, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if TOTALS:
        before = tl.load(total + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + place, (before + value).to(total.dtype.element_ty), mask=inside)
    mean = tl.sum(value, 1) / width
    centered = tl.where(inside, value - mean[:, None], 0.0)
    deviation = tl.sqrt(tl.sum(centered * centered, 1) / width + epsilon)
    factor = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    result = centered / deviation[:, None] * factor[None, :] + shift[None, :]
    tl.store(normed + place, result.to(normed.dtype.element_ty), mask=inside)


def launch_add_norm(
    tokens: Tensor, added: Tensor | None, norm: nn.LayerNorm, total: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the kernel; see `norms.add_norm`."""
    tokens = tokens if tokens.stride(2) == 1 else tokens.contiguous()
    more = tokens if added is None else added if added.stride(2) == 1 else added.contiguous()
    windows, count, width = tokens.shape
    columns = triton.next_power_of_2(width)
    rows = max(1, _TILE // columns)
    normed = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    summed = tokens if added is None else torch.empty_like(normed)
    add_norm_kernel[(triton.cdiv(windows * count, rows),)](
        tokens,
        more,
        norm.weight,
        norm.bias,
        summed,
        normed,
        tokens if total is None else total,
        *tokens.stride()[:2],
        *more.stride()[:2],
        windows * count,
        count,
        width,
        norm.eps,
        ADDS=added is not None,
        TOTALS=total is not None,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=4,
    )
    return summed, normed
