"""What scclip and the released sfp share: attention and aggregation by the similarity of middle layers."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.dense_heads.base import proportional_layer
from ovss_core.feature_purification.mitigation import repair_tokens
from ovss_core.feature_purification.similarity import Aggregation, guide_attention
from ovss_core.kernels import use_kernel
from ovss_core.kernels.attention import attend_by_terms

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
        semantic: The average by the similarity of the repaired semantic layer.
        attention: The attention derived from that layer's similarity, shared by all heads.
        spatial: The average by the similarity of the spatial layer.
    """

    patches: Float[Tensor, "windows patches width"]
    semantic: Aggregation
    attention: Float[Tensor, "windows patches patches"]
    spatial: Aggregation


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
    semantic, attention = guide_attention(
        trace.hidden[layers.semantic][:, 1:], outliers, trace.grid, attend_before_cut
    )
    return SimilarityGuidance(
        patches=repair_tokens(trace.tokens[:, 1:], outliers, trace.grid),
        semantic=semantic,
        attention=attention,
        spatial=Aggregation.of(trace.hidden[layers.spatial][:, 1:]),
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
    return block.output(_attend(block, patches, terms, shared)) + CLASS_TOKEN_WEIGHT * class_token


def _attend(
    block: TransformerBlock, patches: Tensor, terms: tuple[str, ...], shared: Tensor
) -> Float[Tensor, "windows heads patches depth"]:
    if not terms:
        return shared[:, None].to(patches.dtype) @ block.value(patches)
    query, key, value = block.query_key_value(patches)
    vectors = {"query": query, "key": key}
    return attend_by_terms(tuple(vectors[term] for term in terms), block.scale, shared, value)


def two_streams(
    encoder: ImageEncoder,
    trace: EncoderTrace,
    guidance: SimilarityGuidance,
    patches: Float[Tensor, "windows patches width"],
    terms: tuple[str, ...],
    second_terms: tuple[str, ...],
) -> Float[Tensor, "windows patches features"]:
    """Return the features of the patches, attended and averaged, with those of the second stream.

    On a GPU both streams are added while heads are still apart, and so projected and averaged once: after attention all
    is linear.

    Args:
        patches: Repaired and averaged by the semantic similarity.
        terms, second_terms: Which of "query" and "key" attend to their like beside the guided attention, in the stream
            of the patches and in the second one.
    """
    block, summed = encoder.blocks[-1], trace.hidden_sum
    if summed is None or block.scales_layers or not use_kernel(patches):
        attended = attend_guided(encoder, patches, trace.tokens[:, :1], terms, guidance.attention)
        first = guidance.spatial.apply(attended)
        return encoder.project(first + second_stream(encoder, trace, guidance, second_terms))
    if second_terms:
        heads = _attend(block, patches, terms, guidance.attention)
        heads = heads + _attend(block, summed[:, 1:], second_terms, guidance.attention)
    else:
        query, key, value = block.query_key_value(patches)
        vectors = {"query": query, "key": key}
        heads = attend_by_terms(
            tuple(vectors[term] for term in terms),
            block.scale,
            guidance.attention,
            value,
            block.value(summed[:, 1:]),
        )
    # one bias has come with the projection; what is the same for all patches passes an average as it is
    constant = torch.add(block.output_bias, trace.tokens[:, :1] + summed[:, :1], alpha=CLASS_TOKEN_WEIGHT)
    return encoder.project(guidance.spatial.apply(block.output(heads)), constant.expand_as(patches))


def second_stream(
    encoder: ImageEncoder, trace: EncoderTrace, guidance: SimilarityGuidance, terms: tuple[str, ...]
) -> Float[Tensor, "windows patches width"]:
    """Read the sum of the middle layers by the same attention and aggregate it by the spatial similarity."""
    if trace.hidden_sum is None:
        return torch.zeros_like(guidance.patches)
    summed = trace.hidden_sum
    attended = attend_guided(encoder, summed[:, 1:], summed[:, :1], terms, guidance.attention)
    return guidance.spatial.apply(attended)
