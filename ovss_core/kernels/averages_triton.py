"""The kernel of `averages.average`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ovss_core.kernels.averages import STEP

_ROWS, _COLUMNS = 64, 128


@triton.jit
def average_kernel(
    weights,
    patches,
    added,
    result,
    patches_window,
    patches_token,
    added_window,
    added_token,
    rows,
    count,
    width,
    share,
    ADDS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Average the patches of a window for some rows and channels; rows of weights are WIDE, and end with zeros."""
    window = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    step = tl.arange(0, STEP)
    real_row, real_column = (row < rows)[:, None], (column < width)[None, :]
    weights += window * rows * WIDE
    patches += window * patches_window
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, count, STEP):
        one = tl.load(weights + row[:, None] * WIDE + first + step[None, :], mask=real_row, other=0.0)
        known = (first + step < count)[:, None]
        other = tl.load(
            patches + (first + step)[:, None] * patches_token + column[None, :],
            mask=known & real_column,
            other=0.0,
        )
        total = tl.dot(one, other, total, input_precision="ieee")
    inside = real_row & real_column
    if ADDS:
        place = added + window * added_window + row[:, None] * added_token + column[None, :]
        total += share * tl.load(place, mask=inside, other=0.0).to(tl.float32)
    result += window * rows * width
    tl.store(result + row[:, None] * width + column[None, :], total.to(result.dtype.element_ty), mask=inside)


def launch_average(weights: Tensor, patches: Tensor, added: Tensor | None, share: float) -> Tensor:
    """Run the kernel; see `averages.average`."""
    patches = patches if patches.stride(2) == 1 else patches.contiguous()
    more = patches if added is None else added if added.stride(2) == 1 else added.contiguous()
    windows, rows, count = weights.shape
    width = patches.shape[2]
    result = torch.empty(windows, rows, width, dtype=patches.dtype, device=patches.device)
    average_kernel[(windows, triton.cdiv(rows, _ROWS), triton.cdiv(width, _COLUMNS))](
        weights,
        patches,
        more,
        result,
        *patches.stride()[:2],
        *more.stride()[:2],
        rows,
        count,
        width,
        share,
        ADDS=added is not None,
        WIDE=weights.stride(1),
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        STEP=STEP,
        num_warps=4,
        num_stages=3,
    )
    return result
