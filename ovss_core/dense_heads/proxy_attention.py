"""CLIP's values, gathered by an attention that a second tower's patches give: what proxyclip and corrclip share."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock

ENTRIES_AT_ONCE = 1 << 27
"""Numbers of the attention maps that are held at once, half a gigabyte in float32."""


def keep_own(
    excluded: Bool[Tensor, "windows patches patches"],
) -> Bool[Tensor, "windows patches patches"]:
    """Let every patch see itself, in place: its own cosine is its row's largest, so that no row is empty."""
    excluded.diagonal(dim1=1, dim2=2).fill_(False)
    return excluded


def softmax_of_allowed(
    logits: Float[Tensor, "windows patches patches"], excluded: Bool[Tensor, "windows patches patches"]
) -> Float[Tensor, "windows patches patches"]:
    """Return the softmax over the entries that are not excluded; a row keeps its own patch. Changes `logits`."""
    return logits.masked_fill_(keep_own(excluded), -torch.inf).softmax(-1)


def resample_grid(
    vectors: Float[Tensor, "windows patches width"], grid: tuple[int, int], wanted: tuple[int, int]
) -> Float[Tensor, "windows resampled width"]:
    """Bring vectors from one grid to another, bilinearly without antialias; the same grid changes nothing."""
    if grid == wanted:
        return vectors
    planes = vectors.mT.unflatten(2, grid)
    resampled: Tensor = F.interpolate(planes, size=wanted, mode="bilinear", align_corners=False)
    return resampled.flatten(2).mT


def gather_values(
    block: TransformerBlock,
    tokens: Float[Tensor, "windows tokens width"],
    attention: Float[Tensor, "windows patches patches"],
    grids: tuple[tuple[int, int], tuple[int, int]],
    prefix: int = 1,
) -> Float[Tensor, "windows patches width"]:
    """Return the block's output projection of A v, the same A for all heads; the class token is left out.

    Args:
        block: CLIP's last.
        tokens: What enters it.
        attention: On the second tower's grid.
        grids: CLIP's grid, and the second tower's.
        prefix: Tokens in front of the patches.
    """
    values = block.value(tokens).transpose(1, 2).flatten(2)[:, prefix:]
    attended = attention.to(values.dtype) @ resample_grid(values, *grids)
    return block.output(attended.unflatten(2, (block.heads, -1)).transpose(1, 2))


def parts(windows: int, patches: int) -> Iterator[slice]:
    """Split windows so that their attention maps hold at most `ENTRIES_AT_ONCE` numbers; one window at least."""
    step = max(1, ENTRIES_AT_ONCE // patches**2)
    return (slice(first, first + step) for first in range(0, windows, step))
