"""gem: a stream of its own through the last blocks, vectors attending to their like (GEM, Bousselham et al. 2024)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.dense_heads.base import DenseHead
from ovss_core.dense_heads.region_scope import token_scope


class GemHead(DenseHead):
    """Self-self attention of values, keys and queries in the last half of the blocks, residual, no feed-forward."""

    name = "gem"
    can_scope = True
    classless = True

    def request(self, depth: int) -> TraceRequest:
        """Ask for the inputs of the last half of the blocks; positions are resampled with antialiasing."""
        return TraceRequest(hidden=frozenset(range(depth // 2, depth)), resampling="antialias")

    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Add the self-self attentions of the last half to the stream that enters it."""
        start = encoder.depth // 2
        stream, visible = trace.hidden[start], token_scope(trace)
        for layer in range(start, encoder.depth):
            stream = stream + self_self_attention(encoder.blocks[layer], trace.hidden[layer], visible)
        return encoder.project(trace.patches_of(stream))


def self_self_attention(
    block: TransformerBlock,
    tokens: Float[Tensor, "windows tokens width"],
    visible: Bool[Tensor, "windows 1 tokens tokens"] | None = None,
) -> Float[Tensor, "windows tokens width"]:
    """Average the attentions of normalized v, k and q to themselves, one iteration each, applied to v.

    The temperature is the window's mean token norm of ln_1(tokens) times 1 / sqrt(depth), as GEM adapts it.
    """
    temperature = block.normalize(tokens).float().norm(dim=-1).mean(1)[:, None, None, None] * block.scale
    query, key, value = block.query_key_value(tokens)
    total = torch.zeros_like(value)
    for vectors in (value, key, query):
        unit = F.normalize(vectors, dim=-1)
        refined = F.normalize(_attend_to_like(unit, temperature, unit, visible), dim=-1)
        total += _attend_to_like(refined, temperature, value, visible)
    return block.output(total / 3)


def _attend_to_like(unit: Tensor, temperature: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    """Return softmax(temperature u u^T) v; the temperature differs by window, so it scales the vectors."""
    return F.scaled_dot_product_attention(
        unit * temperature.to(unit.dtype), unit, value, attn_mask=visible, scale=1.0
    )
