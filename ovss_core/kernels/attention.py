"""Attention together with its mean over heads, without the maps of the heads."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.kernels import shared_memory, use_kernel

MOST_TOKENS = 1024
"""Beyond these some rows of a map do not fit into a processor's registers."""


def attend_with_mean(
    query: Float[Tensor, "windows heads tokens depth"],
    key: Float[Tensor, "windows heads tokens depth"],
    value: Float[Tensor, "windows heads tokens depth"],
    scale: float,
) -> tuple[Float[Tensor, "windows heads tokens depth"], Float[Tensor, "windows tokens tokens"]]:
    """Return softmax(scale q k^T) v, and the mean over heads of the softmax in float32.

    On a GPU the first is flash attention, and a kernel makes the second: it keeps some rows of the mean in registers
    and adds head after head, so that what is written is one map a window and not one a head.
    """
    if use_kernel(query) and query.shape[2] <= MOST_TOKENS and _fits_on_chip(key):
        from ovss_core.kernels.attention_triton import launch_head_mean

        attended = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return attended, launch_head_mean(query, key, scale)
    # window by window on a CPU: the maps of all heads of one window stay in the cache and serve both results
    attended = torch.empty_like(value)
    mean = query.new_empty(query.shape[0], query.shape[2], query.shape[2], dtype=torch.float32)
    step = 1 if query.device.type == "cpu" else max(len(query), 1)
    for first in range(0, len(query), step):
        part = slice(first, first + step)
        weights = (query[part] @ (key[part] * scale).mT).softmax(-1, dtype=torch.float32)
        torch.mean(weights, 1, out=mean[part])
        attended[part] = weights.to(value.dtype) @ value[part]
    return attended, mean


def _fits_on_chip(key: Tensor) -> bool:
    """Say whether the keys of one head of one window fit into the memory that a program shares."""
    tokens, depth = (1 << (side - 1).bit_length() for side in key.shape[2:])
    return max(tokens, 16) * max(depth, 16) * key.element_size() < shared_memory(key.device)
