"""cliptrase: queries, keys and values each with their like, in full (CLIPtrase, Shao et al. 2024)."""

from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.trace import EncoderTrace
from ovss_core.dense_heads.base import LastBlockHead, self_attention, with_feed_forward


class CliptraseHead(LastBlockHead):
    """(softmax(s q q^T) + softmax(s k k^T) + softmax(s v v^T)) v, residual and feed-forward."""

    name = "cliptrase"

    def attend(self, block: TransformerBlock, trace: EncoderTrace) -> Tensor:
        """Add the three attentions; rows sum to 3."""
        query, key, value = block.query_key_value(trace.tokens)
        return block.output(
            self_attention(block, query, value)
            + self_attention(block, key, value)
            + self_attention(block, value, value)
        )

    def combine(self, block: TransformerBlock, tokens: Tensor, attended: Tensor) -> Tensor:
        """Keep the block's residual and feed-forward."""
        return with_feed_forward(block, tokens + attended)
