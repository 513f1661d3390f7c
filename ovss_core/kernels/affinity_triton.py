"""The kernels of `refinement.balance`: attention's two vectors, and the transfer matrix that they make of it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1 << 13
"""Numbers of attention that one program holds."""
_SIDE = 32
_TINY = 1.1754943508222875e-38


@triton.jit
def _inverted(sums, TINY: tl.constexpr):
    return tl.where(sums > 0, 1.0 / tl.maximum(sums, TINY), 0.0)


@triton.jit
def balance_kernel(
    attention,
    row_scale,
    column_scale,
    patches,
    ROUNDS: tl.constexpr,
    TINY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Find the factors of a window's rows and columns; a round's rows give the sums of the next round's columns."""
    window = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    attention += window * patches * patches
    sums = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, patches, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < patches)[:, None] & (column < patches)[None, :]
        sums += tl.sum(
            tl.load(attention + row[:, None] * patches + column[None, :], mask=inside, other=0.0), 0
        )
    factor = _inverted(sums, TINY)
    for turn in tl.static_range(ROUNDS):
        sums = tl.zeros([COLUMNS], tl.float32)
        for first in range(0, patches, ROWS):
            row = first + tl.arange(0, ROWS)
            inside = (row < patches)[:, None] & (column < patches)[None, :]
            tile = tl.load(attention + row[:, None] * patches + column[None, :], mask=inside, other=0.0)
            own = _inverted(tl.sum(tile * factor[None, :], 1), TINY)
            if turn == ROUNDS - 1:
                tl.store(row_scale + window * patches + row, own, mask=row < patches)
            else:
                sums += tl.sum(tile * own[:, None], 0)
        if turn < ROUNDS - 1:
            factor = _inverted(sums, TINY)
    tl.store(column_scale + window * patches + column, factor, mask=column < patches)


@triton.jit
def transfer_kernel(attention, row_scale, column_scale, transfer, patches, SIDE: tl.constexpr):
    """Make a tile of (diag(u) A diag(v) + diag(v) A^T diag(u)) / 2."""
    window = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(2) * SIDE + tl.arange(0, SIDE)
    start = window * patches * patches
    inside = (row < patches)[:, None] & (column < patches)[None, :]
    across = (column < patches)[:, None] & (row < patches)[None, :]
    forward = tl.load(attention + start + row[:, None] * patches + column[None, :], mask=inside, other=0.0)
    other = tl.load(attention + start + column[:, None] * patches + row[None, :], mask=across, other=0.0)
    row_u = tl.load(row_scale + window * patches + row, mask=row < patches, other=0.0)
    row_v = tl.load(column_scale + window * patches + row, mask=row < patches, other=0.0)
    column_u = tl.load(row_scale + window * patches + column, mask=column < patches, other=0.0)
    column_v = tl.load(column_scale + window * patches + column, mask=column < patches, other=0.0)
    mixed = (
        row_u[:, None] * forward * column_v[None, :] + row_v[:, None] * tl.trans(other) * column_u[None, :]
    )
    tl.store(transfer + start + row[:, None] * patches + column[None, :], mixed * 0.5, mask=inside)


def launch_balance(attention: Tensor, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors of rows and of columns, and the matrix; see `refinement.balance`.

    Args:
        attention: float32.
        rounds: One at least.
    """
    attention = attention.contiguous()
    windows, patches, _ = attention.shape
    row_scale, column_scale = attention.new_empty(2, windows, patches).unbind()
    transfer = torch.empty_like(attention)
    columns = triton.next_power_of_2(patches)
    tiles = triton.cdiv(patches, _SIDE)
    if windows:
        balance_kernel[(windows,)](
            attention,
            row_scale,
            column_scale,
            patches,
            ROUNDS=rounds,
            TINY=_TINY,
            ROWS=max(1, _TILE // columns),
            COLUMNS=columns,
            num_warps=8,
        )
        transfer_kernel[(windows, tiles, tiles)](
            attention, row_scale, column_scale, transfer, patches, SIDE=_SIDE, num_warps=4
        )
    return row_scale, column_scale, transfer
