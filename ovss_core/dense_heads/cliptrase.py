"""cliptrase: queries, keys and values each with their like, in full; regions by clusters (CLIPtrase, Shao et al. 2024)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.config import CliptraseConfig
from ovss_core.dense_heads.base import HeadOptions, LastBlockHead, self_attention, with_feed_forward
from ovss_core.dense_heads.clusters import Clusters, cluster_by_density
from ovss_core.dense_heads.region_scope import token_scope
from ovss_core.dense_heads.scoring import (
    EncodedWindows,
    Evidence,
    PhraseTables,
    ScoringHead,
    Words,
    cosines,
)


class CliptraseHead(LastBlockHead, ScoringHead):
    """(softmax(s q q^T) + softmax(s k k^T) + softmax(s v v^T)) v, residual and feed-forward; with clusters a vote."""

    name = "cliptrase"
    can_scope = True
    classless = True

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        self.settings = (
            options.settings if isinstance(options.settings, CliptraseConfig) else CliptraseConfig()
        )

    @property
    def sees_words(self) -> bool:
        """Whether clusters vote on words."""
        return self.settings.clustering

    def request(self, depth: int) -> TraceRequest:
        """Ask for what enters block L-1, where clusters are wanted."""
        return TraceRequest(hidden=frozenset({depth - 2}) if self.settings.clustering else frozenset())

    def attend(self, block: TransformerBlock, trace: EncoderTrace) -> Tensor:
        """Add the three attentions; rows sum to 3."""
        query, key, value = block.query_key_value(trace.tokens)
        visible = token_scope(trace)
        return block.output(
            self_attention(block, query, value, visible)
            + self_attention(block, key, value, visible)
            + self_attention(block, value, value, visible)
        )

    def combine(self, block: TransformerBlock, tokens: Tensor, attended: Tensor) -> Tensor:
        """Keep the block's residual and feed-forward."""
        return with_feed_forward(block, tokens + attended)

    def evidence(self, encoder: ImageEncoder, trace: EncoderTrace, windows: Tensor) -> Evidence:
        """Keep the correlation of the patches."""
        return {"correlation": less_class(token_correlation(encoder, trace))}

    def scores(self, encoder: ImageEncoder, encoded: EncodedWindows, words: Words) -> PhraseTables:
        """Give every cluster to the phrase that most of its patches are nearest to.

        Under FreeCP, which needs more than one winner, a patch's cosines are the mean of its cluster's instead.
        """
        settings, correlation = self.settings, encoded.evidence["correlation"]
        clusters = cluster_by_density(correlation, encoded.grid, settings.distance, settings.neighbors)
        index = clusters.index_at(encoded.grid).flatten(1)
        if self.options.purified:
            return cosines(region_mean(encoded.features, index, clusters), words)
        nearest = merge_background((words.phrases @ encoded.features.mT).argmax(1), words)
        label = vote(nearest, index, clusters, len(words.phrases))
        votes = F.one_hot(label, len(words.phrases)).mT.float()
        return PhraseTables(votes, votes.new_zeros(len(votes), len(words.others), votes.shape[2]))


def token_correlation(encoder: ImageEncoder, trace: EncoderTrace) -> Float[Tensor, "windows tokens tokens"]:
    """Average, over heads, the cosines of queries, of keys and of values of block L-1."""
    total = torch.zeros(())
    for vectors in encoder.blocks[-2].query_key_value(trace.hidden[encoder.depth - 2]):
        unit = F.normalize(vectors.float(), dim=-1)
        total = total.to(unit) + (unit @ unit.mT).mean(1)
    return total / 3


def less_class(
    correlation: Float[Tensor, "windows tokens tokens"],
) -> Float[Tensor, "windows patches patches"]:
    """Subtract from each patch's row what the class token has with the same patches; nothing stays negative."""
    return (correlation[:, 1:, 1:] - correlation[:, :1, 1:]).clamp_min(0)


def vote(
    label: Int[Tensor, "windows places"], index: Int[Tensor, "windows places"], clusters: Clusters, count: int
) -> Int[Tensor, "windows places"]:
    """Give every cluster the label that most of its places have, the smallest of equals.

    Args:
        label: Of each place, below `count`.
        index: The cluster of each place.
        clusters: A window without any keeps its labels.
    """
    most = max(clusters.maps.shape[1], 1)
    pairs = index * count + label
    counts = torch.zeros(len(label), most * count, dtype=torch.int64, device=label.device)
    counts = counts.scatter_add_(1, pairs, torch.ones_like(pairs)).unflatten(1, (most, count))
    order = torch.arange(count, device=label.device)
    winner = (counts * count - order).argmax(2)
    return torch.where(clusters.counts[:, None] > 0, winner.gather(1, index), label)


def region_mean(
    features: Float[Tensor, "windows patches features"],
    index: Int[Tensor, "windows patches"],
    clusters: Clusters,
) -> Float[Tensor, "windows patches features"]:
    """Replace each patch's features by the mean of its cluster's; a window without clusters keeps them."""
    member = F.one_hot(index, max(clusters.maps.shape[1], 1)).to(features.dtype)
    mean = (member.mT @ features) / member.sum(1)[..., None].clamp_min(1)
    return torch.where(clusters.counts[:, None, None] > 0, member @ mean, features)


def merge_background(label: Tensor, words: Words) -> Tensor:
    """Count all phrases of the background as its first one, so that they vote together."""
    return torch.where(words.background[label], words.background.int().argmax(), label)
