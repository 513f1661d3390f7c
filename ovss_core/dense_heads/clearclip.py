"""clearclip: queries with queries, no residual, no feed-forward (ClearCLIP, Lan et al. 2024)."""

from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.trace import EncoderTrace
from ovss_core.dense_heads.base import LastBlockHead, self_attention
from ovss_core.dense_heads.region_scope import token_scope


class ClearClipHead(LastBlockHead):
    """softmax(s q q^T) v, projected."""

    name = "clearclip"
    can_scope = True
    classless = True

    def attend(self, block: TransformerBlock, trace: EncoderTrace) -> Tensor:
        """Attend from queries to queries, class token included."""
        query, _, value = block.query_key_value(trace.tokens)
        return block.output(self_attention(block, query, value, token_scope(trace)))
