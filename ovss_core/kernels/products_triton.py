"""The kernel of `products`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ovss_core.kernels.products import Tile

_NEIGHBORS = 8
"""Tiles of rows that programs work on at the same time, so that the weights they read stay in the card's cache."""


@triton.jit
def quick_gelu_product_kernel(
    tokens,
    weight,
    bias,
    result,
    rows,
    hidden,
    width,
    tokens_row,
    weight_row,
    EVEN: tl.constexpr,
    NEIGHBORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Multiply a tile of tokens with a tile of weights in float32, add the bias, and apply QuickGELU.

    The last axis of tokens and weights is contiguous, and its length a multiple of DEPTH if EVEN.
    """
    program = tl.program_id(0)
    together = NEIGHBORS * tl.cdiv(hidden, COLUMNS)
    first = program // together * NEIGHBORS
    beside = tl.minimum(tl.cdiv(rows, ROWS) - first, NEIGHBORS)
    top = (first + program % together % beside) * ROWS
    left = program % together // beside * COLUMNS
    # tables are found by 64 bits once, and numbers inside a tile by 32
    tokens += top.to(tl.int64) * tokens_row
    weight += left.to(tl.int64) * weight_row
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    channel = tl.arange(0, DEPTH)
    real_row = top + row < rows
    real_column = left + column < hidden
    # rows behind the last read the first one: what comes of them is not stored, and a mask would cost each load
    ones = tokens + tl.where(real_row, row, 0)[:, None] * tokens_row + channel[None, :]
    others = weight + tl.where(real_column, column, 0)[None, :] * weight_row + channel[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, width, DEPTH):
        if EVEN:
            one = tl.load(ones + start)
            other = tl.load(others + start)
        else:
            known = start + channel < width
            one = tl.load(ones + start, mask=known[None, :], other=0.0)
            other = tl.load(others + start, mask=known[:, None], other=0.0)
        total = tl.dot(one, other, total, input_precision="ieee")
    total += tl.load(bias + left + column, mask=real_column, other=0.0).to(tl.float32)[None, :]
    # x sigmoid(1.702 x) by powers of 2
    total = total / (1.0 + tl.exp2(total * (-1.702 * 1.4426950408889634)))
    place = row[:, None] * hidden + column[None, :]
    result += top.to(tl.int64) * hidden + left
    tl.store(result + place, total.to(result.dtype.element_ty), mask=real_row[:, None] & real_column[None, :])


def launch_quick_gelu_product(tokens: Tensor, weight: Tensor, bias: Tensor, tile: Tile) -> Tensor:
    """Run the kernel; see `products.quick_gelu_product`."""
    tokens, weight = (table if table.stride(1) == 1 else table.contiguous() for table in (tokens, weight))
    rows, width = tokens.shape
    hidden = len(weight)
    result = torch.empty(rows, hidden, dtype=tokens.dtype, device=tokens.device)
    quick_gelu_product_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(hidden, tile.columns),)](
        tokens,
        weight,
        bias,
        result,
        rows,
        hidden,
        width,
        tokens.stride(0),
        weight.stride(0),
        EVEN=width % tile.depth == 0,
        NEIGHBORS=_NEIGHBORS,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return result
