"""SOM, first half: which patches are outliers, by three rules (SFP, eq. 4 and its ablation; SC-CLIP's LOF)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.kernels import use_kernel

LOF_NEIGHBORS = 30
LOF_SHARE = 0.05
NORM_DEVIATIONS = 3.0


def attention_outliers(
    class_attention: Float[Tensor, "windows patches"],
    self_attention: Float[Tensor, "windows patches"],
    factor: float,
    limit: int | None = None,
) -> Bool[Tensor, "windows patches"]:
    """Find patches that the class token attends to more than they attend to themselves (SFP, eq. 4).

    Args:
        class_attention: Head-mean attention of the class token to each patch.
        self_attention: Head-mean attention of each patch to itself.
        factor: A patch is an outlier when factor * class_attention > self_attention, strictly; 1 in the
            paper, 1.5 in the released code.
        limit: Keep at most so many, those with the largest class attention; None keeps all.
    """
    if use_kernel(class_attention):
        from ovss_core.kernels.guidance_triton import launch_outliers

        return launch_outliers(class_attention, self_attention, factor, limit)
    candidates = factor * class_attention > self_attention
    if limit is None or limit >= candidates.shape[1]:
        return candidates
    ranked = torch.where(candidates, class_attention, -torch.inf)
    top = ranked.topk(limit, dim=1).indices
    kept = torch.zeros_like(candidates).scatter_(1, top, True)
    return kept & candidates


def norm_outliers(patches: Float[Tensor, "windows patches width"]) -> Bool[Tensor, "windows patches"]:
    """Find patches whose feature norm exceeds the window's mean by `NORM_DEVIATIONS` standard deviations.

    The ablation of SFP names feature norms and gives no number; three deviations is this project's default.
    """
    norms: Tensor = patches.float().norm(dim=-1)
    limit: Tensor = norms.mean(1, keepdim=True) + NORM_DEVIATIONS * norms.std(1, unbiased=False, keepdim=True)
    return norms > limit


def local_outlier_factor(patches: Float[Tensor, "windows patches width"]) -> Float[Tensor, "windows patches"]:
    """Score how much sparser a patch's surroundings are than those of its neighbors.

    The form of SC-CLIP's released code: squared Euclidean distances, and each patch's reach is its own
    distance to its k-th neighbor (Breunig et al. 2000 take the larger of the distance and the neighbor's
    reach), so the factor is the mean over the neighbors of the ratio of the two reaches.

    Returns:
        The factor; about 1 for inliers. Of fewer patches than `LOF_NEIGHBORS` all others are neighbors; without any it is 1.
    """
    values = patches.float() if patches.dtype in (torch.float16, torch.bfloat16) else patches
    count = min(LOF_NEIGHBORS, patches.shape[1] - 1)
    if count < 1:
        return values.new_ones(values.shape[:2])
    # Beyond 25 patches `cdist` takes |a|^2 + |b|^2 - 2ab, which cancels where patches lie close together: in float64
    # that is exact enough, and 12 times faster on a CPU than summing float32 differences.
    exact = values.double()
    nearest = torch.cdist(exact, exact).square().topk(count + 1, largest=False)
    reach = nearest.values[..., -1]
    neighbor_reach = reach.gather(1, nearest.indices[..., 1:].flatten(1)).view(*reach.shape, count)
    factor: Tensor = reach * neighbor_reach.clamp_min(1e-12).reciprocal().mean(-1)
    return factor.to(values.dtype)


def local_outlier_factor_outliers(
    patches: Float[Tensor, "windows patches width"],
) -> Bool[Tensor, "windows patches"]:
    """Find the patches whose local outlier factor is above the window's (1 - `LOF_SHARE`) quantile."""
    scores = local_outlier_factor(patches)
    return scores > torch.quantile(scores, 1.0 - LOF_SHARE, dim=1, keepdim=True)
