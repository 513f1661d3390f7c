"""SAE: the sharper attention that takes the place of the last block (SFP, eq. 6-7)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.config import SfpConfig


def enhance_attention(
    block: TransformerBlock, patches: Float[Tensor, "windows patches width"], config: SfpConfig
) -> Float[Tensor, "windows patches width"]:
    """Replace the last block by attention with softmax(lambda (q q^T + k k^T) / sqrt(depth)).

    Args:
        block: The last block; its projections, layer norms and feed-forward network are used.
        patches: Purified patch tokens without the class token, F_SOM.
        config: `enhancement_lambda` (0 is the uniform average), `enhancement_projection` (attend to the value
            projection and apply the output projection, or attend to the tokens themselves) and
            `enhancement_residual` (F_SOM + FFN(attended), or the attended tokens alone).

    Returns:
        F_SAE, same shape.
    """
    query, key, value = block.query_key_value(patches)
    # (q q^T + k k^T) is one product of the concatenated vectors, so the map is never formed
    joint = torch.cat([query, key], -1)
    scale = config.enhancement_lambda * block.scale
    if config.enhancement_projection:
        attended = block.output(F.scaled_dot_product_attention(joint, joint, value, scale=scale))
    else:
        heads = patches[:, None].expand(-1, block.heads, -1, -1)
        attended = F.scaled_dot_product_attention(joint, joint, heads, scale=scale).mean(1)
    return patches + block.feed_forward(attended) if config.enhancement_residual else attended
