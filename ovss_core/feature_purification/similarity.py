"""Cosine similarity between a window's patches, and what SFP and SC-CLIP derive from it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SIMILARITY_CUT = 0.4
SIMILARITY_GAIN = 3.0


def patch_similarity(
    patches: Float[Tensor, "windows patches width"],
) -> Float[Tensor, "windows patches patches"]:
    """Return the cosine between every two patches of a window, at least in float32."""
    unit = F.normalize(_at_least_float32(patches), dim=-1)
    return unit @ unit.transpose(1, 2)


def cut_similarity(
    similarity: Float[Tensor, "windows patches patches"], cut: float = SIMILARITY_CUT
) -> Float[Tensor, "windows patches patches"]:
    """Set entries below `cut` to zero."""
    return similarity * (similarity >= cut)


def aggregate(
    similarity: Float[Tensor, "windows patches patches"], patches: Float[Tensor, "windows patches width"]
) -> Float[Tensor, "windows patches width"]:
    """Replace each patch by the average of all, weighted by its row of `similarity` (cut, non-negative)."""
    total = similarity.sum(-1, keepdim=True) + 1e-6
    return ((similarity @ patches.to(similarity.dtype)) / total).to(patches.dtype)


def similarity_attention(
    similarity: Float[Tensor, "windows patches patches"],
) -> Float[Tensor, "windows patches patches"]:
    """Turn similarity into attention: softmax over the entries of 3 (S - mean(S)) that are not negative.

    Args:
        similarity: Cosines after the cut (SFP) or before it (SC-CLIP); the mean is over a window's whole map.

    Returns:
        Rows that sum to 1, shared by all heads. A patch always attends to itself, so no row is empty.
    """
    centerd = SIMILARITY_GAIN * (similarity - similarity.mean((1, 2), keepdim=True))
    excluded = centerd < 0
    excluded.diagonal(dim1=1, dim2=2).fill_(False)
    return centerd.masked_fill_(excluded, -torch.inf).softmax(-1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
