"""Averages of patches by maps of patches on patches, faster on a GPU than the vendor's product.

A window has 196 patches as a rule, and rows of so many numbers in half precision do not begin where matrix units read fastest:
the vendor's product took 13 of 700 microseconds an image on an H200 for three such products a window. So the kernels that make
such maps pad their rows with zeros, and one kernel multiplies them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ovss_core.kernels import use_kernel

STEP = 32
"""Patches that are multiplied at once; padded rows hold a multiple of them."""


def average(
    weights: Float[Tensor, "windows rows patches"],
    patches: Float[Tensor, "windows patches width"],
    added: Float[Tensor, "windows rows width"] | None = None,
    share: float = 1.0,
) -> Float[Tensor, "windows rows width"]:
    """Return weights @ patches + share * added.

    Args:
        weights: If it is a part of a table with longer rows, what is behind its columns must be 0 (`room_for_map`).
        patches: What is averaged.
        added: None adds nothing.
        share: Factor on what is added.
    """
    if use_kernel(patches) and _is_padded(weights) and weights.dtype == patches.dtype:
        from ovss_core.kernels.averages_triton import launch_average

        return launch_average(weights, patches, added, share)
    if added is None:
        return weights @ patches
    return torch.baddbmm(added, weights, patches, beta=share)


def room_for_map(patches: Float[Tensor, "windows patches width"]) -> Float[Tensor, "windows patches columns"]:
    """Return room for a map of patches on patches whose rows are padded; whoever fills it writes zeros behind the patches."""
    windows, count, _ = patches.shape
    return patches.new_empty(windows, count, max(STEP, 1 << (count - 1).bit_length()))


def _is_padded(weights: Tensor) -> bool:
    return (
        weights.element_size() == 2
        and weights.stride(2) == 1
        and weights.stride(1) % STEP == 0
        and weights.stride(1) > weights.shape[2]
        and weights.stride(0) == weights.shape[1] * weights.stride(1)
    )
