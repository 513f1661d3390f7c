"""rfclip: distracted patches repaired in every block, guided keys-with-keys attention of all blocks (RF-CLIP, 2026)."""

import torch
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.channels import require_channels
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.config import RfClipConfig
from ovss_core.dense_heads.base import DenseHead, HeadOptions, self_attention
from ovss_core.dense_heads.region_scope import patch_scope, token_scope
from ovss_core.feature_purification.channels import ChannelRepair
from ovss_core.feature_purification.similarity import cut_similarity, patch_similarity


class RfClipHead(DenseHead):
    """Patches propagated along a guide, then the mean over blocks of softmax(s k k^T); no residual, no feed-forward."""

    name = "rfclip"
    can_scope = True

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        self.settings = options.settings if isinstance(options.settings, RfClipConfig) else RfClipConfig()

    def request(self, depth: int) -> TraceRequest:
        """Ask for repaired blocks, their keys, and the sum of their outputs.

        Raises:
            ConfigError: The checkpoint's over-activated channels are not known, and none are given.
        """
        below = frozenset(range(1, depth))
        return TraceRequest(hidden_sum=below, keys=below, repair=self.repair)

    @property
    def repair(self) -> ChannelRepair:
        """What is done to each block's output."""
        settings = self.settings
        channels = require_channels(self.options.model, settings.channels)
        return ChannelRepair(channels, settings.channel_threshold, settings.blend)

    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Decode the last tokens and the guide, both propagated along the guide, and average them."""
        guide = guide_tokens(encoder, trace, self.repair)
        similarity = cut_similarity(patch_similarity(guide[:, 1:]))
        if (seen := patch_scope(trace)) is not None:
            similarity = similarity.masked_fill(~seen, 0)
        propagated = [propagate(similarity, tokens) for tokens in (trace.tokens, guide)]
        return encoder.project(torch.stack(decode(encoder, trace, propagated)).mean(0))


def guide_tokens(
    encoder: ImageEncoder, trace: EncoderTrace, repair: ChannelRepair
) -> Float[Tensor, "windows tokens width"]:
    """Return the mean of all blocks' repaired outputs, the last block's as it was trained among them."""
    output = repair.after_block(encoder.blocks[-1].forward(trace.tokens), trace.grid)
    total = output if trace.hidden_sum is None else trace.hidden_sum + output
    return total / encoder.depth


def propagate(
    similarity: Float[Tensor, "windows patches patches"], tokens: Float[Tensor, "windows tokens width"]
) -> Float[Tensor, "windows tokens width"]:
    """Sum the patches by their similarity; a layer norm follows, so rows need no normalization."""
    if tokens.dtype == torch.float16:  # the sum of many patches may be larger than any number of 16 bits
        similarity = similarity / similarity.sum(2, keepdim=True)
    patches = similarity @ tokens[:, 1:].to(similarity.dtype)
    return torch.cat([tokens[:, :1], patches.to(tokens.dtype)], 1)


def decode(
    encoder: ImageEncoder, trace: EncoderTrace, streams: list[Tensor]
) -> list[Float[Tensor, "windows patches width"]]:
    """Run the last block's values of each stream through the mean of all blocks' softmax(s k k^T), patches alone.

    The streams share the keys of blocks 1 to L-1, so their values go through one attention a block, side by side. The
    class token takes its part of each row and gives nothing: its value is zero.
    """
    last = encoder.blocks[-1]
    keys, values = [], []
    for tokens in streams:
        _, key, value = last.query_key_value(tokens)
        keys.append(key)
        values.append(torch.cat([torch.zeros_like(value[:, :, :1]), value[:, :, 1:]], 2))
    side_by_side, visible = torch.cat(values, -1), token_scope(trace)
    total = torch.zeros_like(side_by_side)
    for layer, key in trace.keys.items():
        total += self_attention(encoder.blocks[layer - 1], key, side_by_side, visible)
    own = torch.cat(
        [self_attention(last, key, value, visible) for key, value in zip(keys, values, strict=True)], -1
    )
    mean = (total + own) / encoder.depth
    return [last.output(part)[:, 1:] for part in mean.chunk(len(streams), -1)]
