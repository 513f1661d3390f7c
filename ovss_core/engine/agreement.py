"""How far several heads agree about an image: the share of it on which their best classes differ.

Asked of every pixel, this would stitch and compare the maps of all words once more for each head, which costs as much
as labelling by it. It is asked of every patch instead, before stitching, and each patch counts for the share of the
image's pixels that its scores decide: what is lost is only how a pixel between two patches would have mixed them.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.placement import Units
from ovss_core.engine.labels import budget
from ovss_core.images.stitch import stitch_matrix
from ovss_core.images.windows import AxisWindows, WindowLayout


def patch_shares(
    layouts: Sequence[WindowLayout], grid: tuple[int, int], sizes: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "windows patches"]:
    """Return the share of its image that each patch decides when the windows are stitched; float32, 1 an image.

    Args:
        layouts: Each image's windows, all of one size.
        grid: Rows and columns of patches of a window.
        sizes: Height and width of each image.
    """
    found = []
    for layout, (height, width) in zip(layouts, sizes, strict=True):
        down = _axis_shares(layout.vertical, grid[0], height)
        across = _axis_shares(layout.horizontal, grid[1], width)
        shares = down[:, None, :, None] * across[None, :, None, :]
        found.append(shares.reshape(len(layout), -1))
    return np.concatenate(found)


@lru_cache(maxsize=512)
def _axis_shares(axis: AxisWindows, patches: int, output: int) -> Float[np.ndarray, "windows patches"]:
    """Return how much of an axis each patch of each window decides; the matrix that stitches is linear."""
    shares: np.ndarray = stitch_matrix(axis, patches, output).mean(0).numpy().reshape(-1, patches)
    return shares


def best_classes(
    features: Float[Tensor, "windows patches channels"],
    phrases: Float[Tensor, "phrases channels"],
    phrase_class: Int[Tensor, " phrases"],
    allowed: Bool[Tensor, "windows phrases"] | None = None,
) -> Int[Tensor, "windows patches"]:
    """Return the class of the phrase that scores best at each patch.

    Args:
        features: Of one head.
        phrases: Unit vectors.
        phrase_class: Whose each is.
        allowed: Phrases that may win in each window; where none may, the first class is named. None allows all.
    """
    windows, patches = features.shape[:2]
    step = max(1, budget(features.device) // (len(phrases) * patches))
    best = torch.empty((windows, patches), dtype=phrase_class.dtype, device=features.device)
    for start in range(0, windows, step):
        part = slice(start, start + step)
        scores = phrases @ features[part].mT
        if allowed is not None:
            scores.masked_fill_(~allowed[part, :, None], -torch.inf)
        best[part] = phrase_class[scores.argmax(1)]
    return best


def disagreement(
    of_heads: Sequence[Int[Tensor, "windows patches"]],
    shares: Float[Tensor, "windows patches"],
    images: Units,
) -> Float[Tensor, " images"]:
    """Return the share of each image on which not all heads name one class.

    Args:
        of_heads: Each head's class at each patch.
        shares: As `patch_shares`.
        images: Which windows are whose.
    """
    differ = torch.zeros_like(of_heads[0], dtype=torch.bool)
    for other in of_heads[1:]:
        differ |= other != of_heads[0]
    return images.reduce((differ * shares).sum(1), "sum").clamp_max(1)
