"""resclip: the attention of middle blocks mixed into another head's (residual cross-correlation, Yang et al. 2025)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.config import ResClipConfig
from ovss_core.dense_heads.base import (
    DenseHead,
    HeadOptions,
    proportional_layer,
    self_attention,
    with_feed_forward,
)
from ovss_core.dense_heads.naclip import neighborhood_bias_on


class ResClipHead(DenseHead):
    """tau ((1 - lambda) A + lambda R) v: A of naclip, clearclip or sclip, R the mean attention of blocks 6 to 9."""

    name = "resclip"

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        self.settings = options.settings if isinstance(options.settings, ResClipConfig) else ResClipConfig()

    def request(self, depth: int) -> TraceRequest:
        """Ask for the inputs of the middle blocks."""
        return TraceRequest(hidden=frozenset(layer - 1 for layer in residual_layers(depth)))

    def features(self, encoder: ImageEncoder, trace: EncoderTrace) -> Tensor:
        """Mix the two attentions; sclip keeps the block's residual and feed-forward, the others neither."""
        block, settings = encoder.blocks[-1], self.settings
        query, key, value = block.query_key_value(trace.tokens)
        own = attend_as(settings.base, block, trace, (query, key, value))
        mixed = torch.lerp(own, residual_attention(encoder, trace, value), settings.residual_weight)
        attended = block.output(settings.gain * mixed)
        if settings.base == "sclip":
            attended = with_feed_forward(block, trace.tokens + attended)
        return encoder.project(attended[:, 1:])


def residual_layers(depth: int) -> range:
    """Return the blocks, from 1, whose attention is mixed in: 6 to 9 of twelve."""
    return range(proportional_layer(6, depth), proportional_layer(9, depth) + 1)


def residual_attention(encoder: ImageEncoder, trace: EncoderTrace, value: Tensor) -> Tensor:
    """Return R v, head by head: the middle blocks' queries and keys are computed anew, their maps never formed."""
    layers = residual_layers(encoder.depth)
    total = torch.zeros_like(value)
    for layer in layers:
        query, key, _ = encoder.blocks[layer - 1].query_key_value(trace.hidden[layer - 1])
        total += F.scaled_dot_product_attention(query, key, value)
    return total / len(layers)


def attend_as(
    base: str, block: TransformerBlock, trace: EncoderTrace, vectors: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Return the attention of naclip, clearclip or sclip, heads still apart."""
    query, key, value = vectors
    if base == "naclip":
        bias = neighborhood_bias_on(value.device, value.dtype, *trace.grid)
        return F.scaled_dot_product_attention(key, key, value, attn_mask=bias, scale=block.scale)
    attended = self_attention(block, query, value)
    return attended + self_attention(block, key, value) if base == "sclip" else attended
