"""pearl: keys turned towards the queries, centered keys beside them (PEARL's alignment, 2026)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.trace import EncoderTrace
from ovss_core.config import PearlConfig
from ovss_core.dense_heads.base import HeadOptions, LastBlockHead
from ovss_core.dense_heads.region_scope import token_scope


class PearlHead(LastBlockHead):
    """softmax(s q (k R)^T + alpha s c c^T) v, c the centered keys, R per head; neither residual nor feed-forward."""

    name = "pearl"
    can_scope = True
    classless = True

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        self.settings = options.settings if isinstance(options.settings, PearlConfig) else PearlConfig()

    def attend(self, block: TransformerBlock, trace: EncoderTrace) -> Tensor:
        """Attend once, with queries [q, alpha c] and keys [k R, c] of twice the depth."""
        settings = self.settings
        query, key, value = block.query_key_value(trace.tokens)
        centered_query, centered_key = center(query, key, trace.prefix)
        covariance = centered_key.mT @ centered_query
        if settings.alignment == "polar":
            rotation = polar_steps(covariance, settings.iterations)
        else:
            left, _, right = torch.linalg.svd(covariance)
            rotation = left @ right
        turned, centered = key @ rotation.to(key.dtype), centered_key.to(key.dtype)
        asks = torch.cat([query, settings.centered_weight * centered], -1)
        gives, visible = torch.cat([turned, centered], -1), token_scope(trace)
        return block.output(
            F.scaled_dot_product_attention(asks, gives, value, attn_mask=visible, scale=block.scale)
        )


def center(
    query: Float[Tensor, "windows heads tokens depth"],
    key: Float[Tensor, "windows heads tokens depth"],
    prefix: int = 1,
) -> tuple[Float[Tensor, "windows heads tokens depth"], Float[Tensor, "windows heads tokens depth"]]:
    """Subtract from queries and keys their means weighted by the norms of the patches' queries; float32.

    Args:
        query, key: Of all tokens.
        prefix: Tokens in front of the patches.
    """
    wide = query.float()
    weight = wide.norm(dim=-1)
    weight = torch.cat([torch.zeros_like(weight[..., :prefix]), weight[..., prefix:]], -1)
    weight = (weight / (weight.sum(-1, keepdim=True) + 1e-6))[..., None]
    return wide - (weight * wide).sum(2, keepdim=True), key.float() - (weight * key.float()).sum(
        2, keepdim=True
    )


def polar_steps(
    covariance: Float[Tensor, "windows heads depth depth"], iterations: int
) -> Float[Tensor, "windows heads depth depth"]:
    """Go some coupled Newton-Schulz steps from M towards its orthogonal factor, M (M^T M)^(-1/2).

    Five, as the authors' code has them, do not arrive: directions in which queries and keys hardly vary together stay
    small, so that the result is a soft projection onto the others.
    """
    gram = covariance.mT @ covariance
    norm = torch.linalg.matrix_norm(gram, keepdim=True)
    identity = torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    left, right = gram / norm + 1e-6 * identity, identity.expand_as(gram)
    for _ in range(iterations):
        step = (3 * identity - right @ left) / 2
        left, right = left @ step, step @ right
    turned: Tensor = covariance @ right / norm.sqrt()
    return turned
