"""Layer norm in one pass over the tokens, with the sum in front of it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovss_core.kernels import use_kernel

MOST_CHANNELS = 1 << 13


def add_norm(
    tokens: Float[Tensor, "windows tokens width"],
    added: Float[Tensor, "windows tokens width"] | None,
    norm: nn.Module,
    total: Float[Tensor, "windows tokens width"] | None = None,
) -> tuple[Float[Tensor, "windows tokens width"], Float[Tensor, "windows tokens width"]]:
    """Return tokens + added, and the layer norm of this sum.

    Statistics are float32 whatever the tokens are, as in torch's own.

    Args:
        tokens: The stream.
        added: What is added; None adds nothing, and gives the tokens back as they are.
        norm: Over the width.
        total: The sum is added to it, too, in place.
    """
    if isinstance(norm, nn.LayerNorm) and _takes_kernel(tokens, norm):
        from ovss_core.kernels.norms_triton import launch_add_norm

        return launch_add_norm(tokens, added, norm, total)
    summed = tokens if added is None else tokens + added
    if total is not None:
        total += summed
    normed: Tensor = norm(summed)
    return summed, normed


def layer_norm(
    tokens: Float[Tensor, "windows tokens width"], norm: nn.Module
) -> Float[Tensor, "windows tokens width"]:
    """Return the layer norm of tokens, which may be a part of a larger tensor."""
    return add_norm(tokens, None, norm)[1]


def _takes_kernel(tokens: Tensor, norm: nn.LayerNorm) -> bool:
    plain = norm.bias is not None and len(norm.normalized_shape) == 1
    graded = torch.is_grad_enabled() and (tokens.requires_grad or norm.weight.requires_grad)
    return use_kernel(tokens) and plain and not graded and tokens.shape[2] <= MOST_CHANNELS
