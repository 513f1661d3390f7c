"""What scclip and the released sfp share: attention and aggregation by the similarity of middle layers."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.dense_heads.base import proportional_layer
from ovss_core.feature_purification.attention_enhancement import mixed_attention
from ovss_core.feature_purification.mitigation import repair_tokens
from ovss_core.feature_purification.similarity import (
    aggregate,
    cut_similarity,
    patch_similarity,
    similarity_attention,
)

CLASS_TOKEN_WEIGHT = 0.3


@dataclass(frozen=True)
class SimilarityLayers:
    """The layers a 12-block encoder uses, carried over to other depths.

    Attributes:
        semantic: Block 9: its similarity guides attention and the first aggregation.
        spatial: Block 4: its similarity guides the second aggregation.
        summed: Blocks 4 to L-2: their sum is the second stream.
    """

    semantic: int
    spatial: int
    summed: frozenset[int]

    @classmethod
    def of(cls, depth: int) -> "SimilarityLayers":
        """Return the layers for an encoder with `depth` blocks."""
        spatial = proportional_layer(4, depth)
        return cls(proportional_layer(9, depth), spatial, frozenset(range(spatial, depth - 1)))

    def request(self) -> TraceRequest:
        """Ask for these layers."""
        return TraceRequest(hidden=frozenset({self.semantic, self.spatial}), hidden_sum=self.summed)


@dataclass(frozen=True)
class SimilarityGuidance:
    """The similarities that one batch of windows is purified with.

    Attributes:
        patches: Repaired patch tokens of block L-1.
        semantic: Similarity of the repaired semantic layer, cut.
        attention: The attention derived from that layer's similarity, shared by all heads.
        spatial: Similarity of the spatial layer, cut.
    """

    patches: Float[Tensor, "windows patches width"]
    semantic: Float[Tensor, "windows patches patches"]
    attention: Float[Tensor, "windows patches patches"]
    spatial: Float[Tensor, "windows patches patches"]


def guide(
    trace: EncoderTrace,
    layers: SimilarityLayers,
    outliers: Bool[Tensor, "windows patches"],
    attend_before_cut: bool,
) -> SimilarityGuidance:
    """Repair the outliers and derive the similarities.

    Args:
        trace: Holds the semantic and the spatial layer.
        outliers: Patches to repair in block L-1 and in the semantic layer.
        attend_before_cut: Derive the attention from the similarity before the cut (SC-CLIP) or after (SFP).
    """
    similarity = patch_similarity(repair_tokens(trace.hidden[layers.semantic][:, 1:], outliers, trace.grid))
    semantic = cut_similarity(similarity)
    attended = similarity if attend_before_cut else semantic
    return SimilarityGuidance(
        patches=repair_tokens(trace.tokens[:, 1:], outliers, trace.grid),
        semantic=semantic,
        attention=similarity_attention(attended),
        spatial=cut_similarity(patch_similarity(trace.hidden[layers.spatial][:, 1:])),
    )


def attend_guided(
    encoder: ImageEncoder,
    patches: Float[Tensor, "windows patches width"],
    class_token: Float[Tensor, "windows 1 width"],
    terms: tuple[str, ...],
    shared: Float[Tensor, "windows patches patches"],
) -> Float[Tensor, "windows patches width"]:
    """Run the last block's attention on patches alone, mixed with the shared map, plus 0.3 times the class token.

    Args:
        terms: Which of "query" and "key" attend to their like beside the shared map.
    """
    block = encoder.blocks[-1]
    if terms:
        query, key, value = block.query_key_value(patches)
        vectors = {"query": query, "key": key}
        attended = mixed_attention(tuple(vectors[term] for term in terms), block.scale, shared, value)
    else:
        attended = shared[:, None].to(patches.dtype) @ block.value(patches)
    return block.output(attended) + CLASS_TOKEN_WEIGHT * class_token


def second_stream(
    encoder: ImageEncoder, trace: EncoderTrace, guidance: SimilarityGuidance, terms: tuple[str, ...]
) -> Float[Tensor, "windows patches width"]:
    """Read the sum of the middle layers by the same attention and aggregate it by the spatial similarity."""
    if trace.hidden_sum is None:
        return torch.zeros_like(guidance.patches)
    summed = trace.hidden_sum
    attended = attend_guided(encoder, summed[:, 1:], summed[:, :1], terms, guidance.attention)
    return aggregate(guidance.spatial, attended)
