"""itaclip: self-self attention of the last block, half of it lent by middle blocks (ITACLIP, Aydin et al. 2025)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.config import ItaClipConfig
from ovss_core.dense_heads.base import (
    DenseHead,
    HeadOptions,
    proportional_layer,
    self_attention,
)
from ovss_core.dense_heads.region_scope import token_scope


class ItaClipHead(DenseHead):
    """(C_12 + mean(C_7, C_8, C_10)) / 2 v + residual, C_l = softmax(s q q^T) + softmax(s k k^T) of block l."""

    name = "itaclip"
    can_scope = True
    classless = True

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        self.settings = options.settings if isinstance(options.settings, ItaClipConfig) else ItaClipConfig()

    def request(self, depth: int) -> TraceRequest:
        """Ask for the inputs of the middle blocks."""
        return TraceRequest(hidden=frozenset(layer - 1 for layer in _middle_layers(depth)))

    def features(self, encoder: ImageEncoder, trace: EncoderTrace) -> Tensor:
        """Mix the attentions, all applied to the last block's values; residual, no feed-forward."""
        last, layers = encoder.blocks[-1], _middle_layers(encoder.depth)
        query, key, value = last.query_key_value(trace.tokens)
        middle, visible = torch.zeros_like(value), token_scope(trace)
        for layer in layers:
            block = encoder.blocks[layer - 1]
            vectors = block.query_key_value(trace.hidden[layer - 1])
            middle += self._attend(block, vectors[:2], value, visible)
        mixed = (self._attend(last, (query, key), value, visible) + middle / len(layers)) / 2
        return encoder.project(trace.patches_of(trace.tokens + last.output(mixed)))

    def _attend(
        self, block: TransformerBlock, vectors: tuple[Tensor, ...], value: Tensor, visible: Tensor | None
    ) -> Tensor:
        query, key = vectors
        if self.settings.self_attention:
            own = self_attention(block, query, value, visible)
            return own + self_attention(block, key, value, visible)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=block.scale)


def _middle_layers(depth: int) -> tuple[int, ...]:
    return tuple(proportional_layer(layer, depth) for layer in (7, 8, 10))
