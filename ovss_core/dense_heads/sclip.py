"""sclip: correlative self-attention, queries with queries plus keys with keys (SCLIP, Wang et al. 2024)."""

from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.trace import EncoderTrace
from ovss_core.dense_heads.base import LastBlockHead, self_attention, with_feed_forward
from ovss_core.dense_heads.region_scope import token_scope


class SclipHead(LastBlockHead):
    """softmax(s q q^T) + softmax(s k k^T), residual and feed-forward; FreeCP's form drops the block residual."""

    name = "sclip"
    can_scope = True
    classless = True

    def attend(self, block: TransformerBlock, trace: EncoderTrace) -> Tensor:
        """Add the two attentions; rows sum to 2."""
        query, key, value = block.query_key_value(trace.tokens)
        visible = token_scope(trace)
        attended = self_attention(block, query, value, visible) + self_attention(block, key, value, visible)
        return block.output(attended)

    def combine(self, block: TransformerBlock, tokens: Tensor, attended: Tensor) -> Tensor:
        """Keep the block's residual and feed-forward, or FreeCP's form."""
        return with_feed_forward(block, attended if self.options.purified else tokens + attended)
