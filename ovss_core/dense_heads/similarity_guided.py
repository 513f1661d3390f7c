"""What scclip and the released sfp share: attention and aggregation by the similarity of middle layers."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.dense_heads.base import proportional_layer, self_attention
from ovss_core.dense_heads.region_scope import keep_visible, patch_scope
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
        visible: Which patches may be attended to, where regions say so.
    """

    patches: Float[Tensor, "windows patches width"]
    semantic: Aggregation
    attention: Float[Tensor, "windows patches patches"]
    spatial: Aggregation
    visible: Bool[Tensor, "windows patches patches"] | None = None


def guide(
    trace: EncoderTrace,
    layers: SimilarityLayers,
    outliers: Bool[Tensor, "windows patches"],
    attend_before_cut: bool,
) -> SimilarityGuidance:
    """Repair the outliers, and derive the similarities that all later steps of the released SFP and of SC-CLIP go by.

    Args:
        trace: Holds the semantic and the spatial layer.
        outliers: Patches to repair in block L-1 and in the semantic layer.
        attend_before_cut: Derive the attention from the similarity before the cut (SC-CLIP) or after (SFP).
    """
    semantic, attention = guide_attention(
        trace.patches_of(trace.hidden[layers.semantic]), outliers, trace.grid, attend_before_cut
    )
    visible = patch_scope(trace)
    return SimilarityGuidance(
        patches=repair_tokens(trace.patches_of(trace.tokens), outliers, trace.grid),
        semantic=semantic,
        attention=keep_visible(attention, visible),
        spatial=Aggregation.of(trace.patches_of(trace.hidden[layers.spatial])),
        visible=visible,
    )


def attend_guided(
    encoder: ImageEncoder,
    patches: Float[Tensor, "windows patches width"],
    class_token: Float[Tensor, "windows 1 width"],
    terms: tuple[str, ...],
    shared: Float[Tensor, "windows patches patches"],
    visible: Bool[Tensor, "windows patches patches"] | None = None,
) -> Float[Tensor, "windows patches width"]:
    """Run the last block's attention on patches alone, mixed with the shared map, plus 0.3 times the class token.

    Args:
        terms: Which of "query" and "key" attend to their like beside the shared map.
        visible: Which patches may be attended to, where regions say so; the shared map keeps to it already.
    """
    block = encoder.blocks[-1]
    attended = _attend(block, patches, terms, shared, visible)
    return block.output(attended) + CLASS_TOKEN_WEIGHT * class_token


def _attend(
    block: TransformerBlock,
    patches: Tensor,
    terms: tuple[str, ...],
    shared: Tensor,
    visible: Tensor | None = None,
) -> Float[Tensor, "windows heads patches depth"]:
    if not terms:
        return shared[:, None].to(patches.dtype) @ block.value(patches)
    query, key, value = block.query_key_value(patches)
    vectors = {"query": query, "key": key}
    if visible is not None:
        total = shared[:, None].to(value.dtype) @ value
        for term in terms:
            total = total + self_attention(block, vectors[term], value, visible[:, None])
        return total / (len(terms) + 1)
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
    plain = block.scales_layers or not use_kernel(patches) or guidance.visible is not None
    if summed is None or plain:
        class_token = trace.class_token_of(trace.tokens)
        attended = attend_guided(encoder, patches, class_token, terms, guidance.attention, guidance.visible)
        first = guidance.spatial.apply(attended)
        return encoder.project(first + second_stream(encoder, trace, guidance, second_terms))
    if second_terms:
        heads = _attend(block, patches, terms, guidance.attention)
        heads = heads + _attend(block, trace.patches_of(summed), second_terms, guidance.attention)
    else:
        query, key, value = block.query_key_value(patches)
        vectors = {"query": query, "key": key}
        heads = attend_by_terms(
            tuple(vectors[term] for term in terms),
            block.scale,
            guidance.attention,
            value,
            block.value(trace.patches_of(summed)),
        )
    # one bias has come with the projection; what is the same for all patches passes an average as it is
    class_tokens = trace.class_token_of(trace.tokens) + trace.class_token_of(summed)
    constant = torch.add(block.output_bias, class_tokens, alpha=CLASS_TOKEN_WEIGHT)
    return encoder.project(guidance.spatial.apply(block.output(heads)), constant.expand_as(patches))


def second_stream(
    encoder: ImageEncoder, trace: EncoderTrace, guidance: SimilarityGuidance, terms: tuple[str, ...]
) -> Float[Tensor, "windows patches width"]:
    """Read the sum of the middle layers by the same attention and aggregate it by the spatial similarity."""
    if trace.hidden_sum is None:
        return torch.zeros_like(guidance.patches)
    summed = trace.hidden_sum
    attended = attend_guided(
        *(encoder, trace.patches_of(summed), trace.class_token_of(summed), terms),
        *(guidance.attention, guidance.visible),
    )
    return guidance.spatial.apply(attended)
