"""resclip: the attention of middle blocks mixed into another head's, labels fed back (ResCLIP, Yang et al. 2025)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.config import ResClipConfig
from ovss_core.dense_heads.base import HeadOptions, proportional_layer, with_feed_forward
from ovss_core.dense_heads.label_feedback import label_attention, label_patches
from ovss_core.dense_heads.naclip import neighborhood_bias_on
from ovss_core.dense_heads.region_scope import token_scope
from ovss_core.dense_heads.scoring import (
    EncodedWindows,
    Evidence,
    PhraseTables,
    ScoringHead,
    Words,
    cosines,
)


class ResClipHead(ScoringHead):
    """tau ((1 - lambda) A + lambda R) v: A of naclip, clearclip or sclip, R the mean attention of blocks 6 to 9."""

    name = "resclip"
    can_scope = True
    classless = True

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        self.settings = options.settings if isinstance(options.settings, ResClipConfig) else ResClipConfig()

    @property
    def sees_words(self) -> bool:
        """Whether labels are fed back."""
        return self.settings.feedback

    def request(self, depth: int) -> TraceRequest:
        """Ask for the inputs of the middle blocks."""
        return TraceRequest(hidden=frozenset(layer - 1 for layer in residual_layers(depth)))

    def features(self, encoder: ImageEncoder, trace: EncoderTrace) -> Tensor:
        """Mix the two attentions; sclip keeps the block's residual and feed-forward, the others neither."""
        value = encoder.blocks[-1].value(trace.tokens)
        residual = residual_attention(encoder, trace, value)
        return self._read(encoder, trace.tokens, residual, trace.grid, visible=token_scope(trace))

    def evidence(self, encoder: ImageEncoder, trace: EncoderTrace, windows: Tensor) -> Evidence:
        """Keep what a second pass begins with: the tokens, the residual attention, and the pixels."""
        value = encoder.blocks[-1].value(trace.tokens)
        residual = residual_attention(encoder, trace, value)
        kept = {"tokens": trace.tokens, "residual": residual, "pixels": windows}
        visible = token_scope(trace)
        return kept if visible is None else {**kept, "visible": visible}

    def scores(self, encoder: ImageEncoder, encoded: EncodedWindows, words: Words) -> PhraseTables:
        """Label the patches by the first pass, and score by a second that those labels guide."""
        kept, grid = encoded.evidence, encoded.grid
        first = cosines(encoded.features, words).phrases
        label = label_patches(first, kept["pixels"], grid, self.settings.feedback_threshold)
        labels, visible = label_attention(label, grid), kept.get("visible")
        features = self._read(encoder, kept["tokens"], kept["residual"], grid, labels, visible)
        return cosines(F.normalize(features.float(), dim=-1), words)

    def _read(
        self,
        encoder: ImageEncoder,
        tokens: Tensor,
        residual: Tensor,
        grid: tuple[int, int],
        labels: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Float[Tensor, "windows patches features"]:
        block, settings = encoder.blocks[-1], self.settings
        bias, gain = self._bias(tokens, grid, encoder.prefix, labels)
        if visible is not None:
            bias = visible if bias is None else bias.masked_fill(~visible, -torch.inf)
        encoder.lie_on(grid)
        query, key, value = block.query_key_value(tokens)
        asking = {"naclip": (key,), "clearclip": (query,), "sclip": (query, key)}[settings.base]
        own = torch.zeros_like(value)
        for vectors in asking:
            scale = gain * block.scale
            own += F.scaled_dot_product_attention(vectors, vectors, value, attn_mask=bias, scale=scale)
        mixed = torch.lerp(own, residual.to(own.dtype), settings.residual_weight)
        attended = block.output(settings.gain * mixed)
        if settings.base == "sclip":
            attended = with_feed_forward(block, tokens + attended)
        return encoder.project(attended[:, encoder.prefix :])

    def _bias(
        self, tokens: Tensor, grid: tuple[int, int], prefix: int, labels: Tensor | None
    ) -> tuple[Tensor | None, float]:
        """Return what is added to the logits, the same for all heads, and the factor on their products."""
        near = self.settings.base == "naclip"
        bias = neighborhood_bias_on(tokens.device, tokens.dtype, *grid, prefix=prefix) if near else None
        if labels is None:
            return bias, 1.0
        weight, gain = self.settings.feedback_weight, self.settings.feedback_gain
        peaked = gain * weight * labels / labels.amax((1, 2), keepdim=True)
        added = F.pad(peaked, (prefix, 0, prefix, 0))[:, None].to(tokens.dtype)
        return (added if bias is None else added + bias), gain * (1 - weight)


def residual_layers(depth: int) -> range:
    """Return the blocks, from 1, whose attention is mixed in: 6 to 9 of twelve."""
    return range(proportional_layer(6, depth), proportional_layer(9, depth) + 1)


def residual_attention(
    encoder: ImageEncoder, trace: EncoderTrace, value: Float[Tensor, "windows heads tokens depth"]
) -> Float[Tensor, "windows heads tokens depth"]:
    """Return R v, head by head: the middle blocks' queries and keys are computed anew, their maps never formed."""
    layers, visible = residual_layers(encoder.depth), token_scope(trace)
    total = torch.zeros_like(value)
    for layer in layers:
        query, key, _ = encoder.blocks[layer - 1].query_key_value(trace.hidden[layer - 1])
        total += F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    return total / len(layers)
