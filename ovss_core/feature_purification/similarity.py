"""Cosine similarity between a window's patches, and what SFP and SC-CLIP derive from it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.feature_purification.mitigation import repair_tokens
from ovss_core.kernels import use_kernel
from ovss_core.kernels.averages import average

SIMILARITY_CUT = 0.4
SIMILARITY_GAIN = 3.0
MOST_PATCHES = 1024
"""Beyond these some rows of a map do not fit into a GPU processor's registers."""


@dataclass(frozen=True)
class Aggregation:
    """How each patch becomes the average of all that are like it.

    Attributes:
        weights: Cosines above the cut, or their shares of their row's sum.
        shares: Whether rows sum to 1.
    """

    weights: Float[Tensor, "windows patches patches"]
    shares: bool = False

    @classmethod
    def of(cls, patches: Float[Tensor, "windows patches width"]) -> "Aggregation":
        """Average by the cosines of these tokens."""
        if use_kernel(patches) and patches.shape[1] <= MOST_PATCHES:
            from ovss_core.kernels.guidance_triton import launch_weights

            return cls(launch_weights(patches, SIMILARITY_CUT), shares=True)
        return cls(cut_similarity(patch_similarity(patches)))

    def apply(
        self, patches: Float[Tensor, "windows patches width"]
    ) -> Float[Tensor, "windows patches width"]:
        """Average the patches."""
        return average(self.weights, patches) if self.shares else aggregate(self.weights, patches)


def guide_attention(
    patches: Float[Tensor, "windows patches width"],
    outliers: Bool[Tensor, "windows patches"],
    grid: tuple[int, int],
    attend_before_cut: bool,
) -> tuple[Aggregation, Float[Tensor, "windows patches patches"]]:
    """Repair the outliers among tokens; return the average by their cosines, and the attention derived from them.

    Args:
        patches: Tokens of one layer.
        outliers: Patches to repair first.
        grid: Rows and columns of patches.
        attend_before_cut: Derive the attention from all cosines, not from those above the cut.
    """
    if use_kernel(patches) and patches.shape[1] <= MOST_PATCHES:
        from ovss_core.kernels.guidance_triton import launch_guidance

        weights, attention = launch_guidance(
            patches, outliers, grid, SIMILARITY_CUT, SIMILARITY_GAIN, not attend_before_cut
        )
        return Aggregation(weights, shares=True), attention
    similarity = patch_similarity(repair_tokens(patches, outliers, grid))
    kept = cut_similarity(similarity)
    return Aggregation(kept), similarity_attention(similarity if attend_before_cut else kept)


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
    centered = SIMILARITY_GAIN * (similarity - similarity.mean((1, 2), keepdim=True))
    excluded = centered < 0
    excluded.diagonal(dim1=1, dim2=2).fill_(False)
    return centered.masked_fill_(excluded, -torch.inf).softmax(-1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
