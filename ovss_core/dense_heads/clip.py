"""clip: the last block as it was trained (Radford et al. 2021)."""

import torch.nn.functional as F
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.trace import EncoderTrace
from ovss_core.dense_heads.base import LastBlockHead, with_feed_forward
from ovss_core.dense_heads.region_scope import token_scope


class ClipHead(LastBlockHead):
    """Attention softmax(s q k^T), residual and feed-forward; under FreeCP without the block residual."""

    name = "clip"
    can_scope = True
    classless = True

    def attend(self, block: TransformerBlock, trace: EncoderTrace) -> Tensor:
        """Attend from queries to keys."""
        query, key, value = block.query_key_value(trace.tokens)
        return block.output(F.scaled_dot_product_attention(query, key, value, attn_mask=token_scope(trace)))

    def combine(self, block: TransformerBlock, tokens: Tensor, attended: Tensor) -> Tensor:
        """Keep the block as it is, or in FreeCP's form."""
        return with_feed_forward(block, attended if self.options.purified else tokens + attended)
