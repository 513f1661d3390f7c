"""maskclip: the last block's values alone, every patch for itself (MaskCLIP, Zhou et al. 2022)."""

from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.trace import EncoderTrace
from ovss_core.dense_heads.base import LastBlockHead, with_feed_forward


class MaskClipHead(LastBlockHead):
    """Identity attention, no residual; FreeCP's form adds the feed-forward network with its own residual."""

    name = "maskclip"
    classless = True

    def attend(self, block: TransformerBlock, trace: EncoderTrace) -> Tensor:
        """Project the values."""
        return block.output(block.value(trace.tokens))

    def combine(self, block: TransformerBlock, tokens: Tensor, attended: Tensor) -> Tensor:
        """Keep the projected values, or FreeCP's form of them."""
        return with_feed_forward(block, attended) if self.options.purified else attended
