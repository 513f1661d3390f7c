"""cliper: every block's tokens through the last one, along the refined attention of all blocks (CLIPer, ICCV 2025)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.config import CliperConfig
from ovss_core.dense_heads.base import HeadOptions
from ovss_core.dense_heads.region_scope import keep_visible, token_scope
from ovss_core.dense_heads.scoring import (
    EncodedWindows,
    Evidence,
    PhraseTables,
    ScoringHead,
    Words,
    join_weights,
)

SMALLEST = 1e-12
"""A score that is nothing, whose logarithm FreeCP takes all the same."""


class CliperHead(ScoringHead):
    """Probabilities of one feature set a block, averaged, plus the last set's spread along the attention."""

    name = "cliper"
    can_scope = True
    classless = True

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        self.settings = options.settings if isinstance(options.settings, CliperConfig) else CliperConfig()

    def request(self, depth: int) -> TraceRequest:
        """Ask for what enters every block, and for the attention of every head; positions are resampled bilinearly."""
        return TraceRequest(
            hidden=frozenset(range(depth - 1)), head_attention_sum=True, resampling="bilinear"
        )

    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Return the last feature set, that of block L-1."""
        *_, last = refined_attention(trace, encoder.depth)
        return read_along(encoder, trace, trace.tokens, last)

    def evidence(self, encoder: ImageEncoder, trace: EncoderTrace, windows: Tensor) -> Evidence:
        """Keep the feature sets of the blocks before, and the last set's attention between patches."""
        sets = []
        for layer, attention in enumerate(refined_attention(trace, encoder.depth)):
            if layer < encoder.depth - 1:
                # as released: what enters block layer + 1 normalized, and so normalized twice
                entering = encoder.blocks[layer].normalize(trace.hidden[layer])
                sets.append(F.normalize(read_along(encoder, trace, entering, attention).float(), dim=-1))
        return {
            "sets": torch.stack(sets, 1),
            "affinity": attention.mean(1)[:, trace.prefix :, trace.prefix :],
        }

    def scores(self, encoder: ImageEncoder, encoded: EncodedWindows, words: Words) -> PhraseTables:
        """Average the sets' probabilities, the last set's cut, and add the last set's spread along the attention.

        The mean of the foreground's phrases takes part in each softmax, beside the phrases.
        """
        before, affinity = encoded.evidence["sets"], encoded.evidence["affinity"]
        earlier = [self._probabilities(maps, words) for maps in before.unbind(1)]
        last = [
            cut_below_peak(part, self.settings.attention_threshold)
            for part in self._probabilities(encoded.features, words)
        ]
        tables = []
        for place, part in enumerate(last):
            total = part + sum(found[place] for found in earlier)
            tables.append(part @ affinity + total / (len(earlier) + 1))
        return PhraseTables(*tables)

    def logits(self, scores: Tensor, scale: float) -> Tensor:
        """Return the logarithm: the softmax gives the scores back, as shares of their sum."""
        return scores.clamp_min(SMALLEST).log()

    def _probabilities(self, maps: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        scale = self.settings.text_scale
        competing = torch.cat([words.phrases, words.foreground_mean])
        phrases, others = join_weights(scale * maps @ competing.T, scale * maps @ words.others.T)
        return phrases[..., :-1].mT, others.mT


def refined_attention(
    trace: EncoderTrace, depth: int
) -> Iterator[Float[Tensor, "windows heads tokens tokens"]]:
    """Yield one attention a feature set: the heads' attention over all blocks, balanced once more each time.

    Columns, then rows are divided by their sums; what follows is symmetrized, less its columns' means, without what is
    negative, and its rows sum to 1. As released, each set goes on from the balance of the one before. With regions patches
    then see their own region's alone, and rows sum to 1 again.
    """
    attention = trace.head_attention_sum
    if attention is None:
        raise ValueError("the trace lacks head_attention_sum; request it")
    rows, visible = torch.ones_like(attention[..., :1]), token_scope(trace)
    for _ in range(depth):
        columns = 1 / (attention.mT @ rows)
        rows = 1 / (attention @ columns)
        balanced = rows * attention * columns.mT
        symmetric = (balanced + balanced.mT) / 2
        raised = (symmetric - symmetric.mean(-2, keepdim=True)).clamp_min_(0)
        yield keep_visible(raised / raised.sum(-1, keepdim=True), visible)


def read_along(
    encoder: ImageEncoder,
    trace: EncoderTrace,
    tokens: Float[Tensor, "windows tokens width"],
    attention: Float[Tensor, "windows heads tokens tokens"],
) -> Float[Tensor, "windows patches features"]:
    """Run tokens' values through the last block along an attention; no residual, no feed-forward."""
    block = encoder.blocks[-1]
    value = block.value(tokens)
    return encoder.project(trace.patches_of(block.output(attention.to(value.dtype) @ value)))


def cut_below_peak(
    maps: Float[Tensor, "windows phrases patches"], share: float
) -> Float[Tensor, "windows phrases patches"]:
    """Set what is below a share of a phrase's peak to zero."""
    return maps * (maps >= share * maps.amax(2, keepdim=True))
