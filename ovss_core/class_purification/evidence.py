"""How strongly each class speaks for each patch: the softmax over all phrases, in bounded memory.

Phrases are scored in chunks that never split a class. A first pass finds the softmax's denominator and its extremes; a
second forms probabilities only where a class could clear one 8-bit level (FreeCP's box rule leaves every other map
empty, its score zero) and still be kept, so that later work hardly grows with the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.placement import Units
from ovss_core.class_purification.regions import LEVELS

ACTIVITY_SLACK = 1e-3
KEPT_SCORES = 1 << 25
"""Scores that are kept from the first pass for the second; more are computed twice."""


@dataclass(frozen=True)
class PhraseChunk:
    """Some classes with all their phrases.

    Attributes:
        classes: Class index of each column, most phrases first.
        phrases: Phrase indices: the first phrase of every class, then every second phrase, and so on.
        rank_sizes: How many classes have a first, a second, ... phrase.
    """

    classes: Int[Tensor, " classes"]
    phrases: Int[Tensor, " phrases"]
    rank_sizes: tuple[int, ...]


def plan_chunks(
    phrase_class: Sequence[int] | np.ndarray, size: int, device: torch.device | str = "cpu"
) -> tuple[PhraseChunk, ...]:
    """Pack whole classes into chunks of at most `size` phrases; a class with more gets a chunk of its own.

    Args:
        phrase_class: The class of each phrase, in any order.
        size: Phrases scored at once.
        device: Where the chunks' indices are held.
    """
    order = np.argsort(np.asarray(phrase_class), kind="stable")
    classes, first, counts = np.unique(np.asarray(phrase_class)[order], return_index=True, return_counts=True)
    chunks: list[list[int]] = []
    filled = size
    for position, count in enumerate(counts):
        if filled + count > size:
            chunks.append([])
            filled = 0
        chunks[-1].append(position)
        filled += count
    planned = []
    for chunk in chunks:
        # the k-th phrases of all classes stand together, so that the maximum over synonyms is a few whole slices
        members = np.array(chunk)[np.argsort(-counts[chunk], kind="stable")]
        ranks = [members[counts[members] > rank] for rank in range(counts[members[0]])]
        phrases = np.concatenate([order[first[holders] + rank] for rank, holders in enumerate(ranks)])
        columns, rows = (
            torch.from_numpy(row.astype(np.int64)).to(device) for row in (classes[members], phrases)
        )
        planned.append(PhraseChunk(columns, rows, tuple(map(len, ranks))))
    return tuple(planned)


class PhraseScores:
    """Scaled cosines of every patch with the phrases of one chunk after the other.

    Args:
        features: L2-normalized patch features; scored in float32 or wider.
        embeddings: L2-normalized phrase embeddings.
        scale: Factor on the cosines.
        chunks: From `plan_chunks`. Scores are computed once and kept if there is one chunk, or if all are few.
        table: The scores of all phrases, where the head has made them.
    """

    def __init__(
        self,
        features: Float[Tensor, "windows patches channels"],
        embeddings: Float[Tensor, "phrases channels"],
        scale: float,
        chunks: Sequence[PhraseChunk],
        table: Float[Tensor, "phrases windows patches"] | None = None,
    ) -> None:
        self._table = table
        wide = torch.promote_types(features.dtype, torch.float32)
        self.shape = features.shape[:2]
        self.chunks = chunks
        self._flat = features.to(wide).flatten(0, 1).mT
        self._embeddings = embeddings.to(wide) * scale
        self._keeps = len(chunks) == 1 or len(embeddings) * self._flat.shape[1] <= KEPT_SCORES
        self._kept: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[PhraseChunk, Tensor]]:
        """Yield each chunk with its scores [phrases, windows, patches]; callers may not write into them."""
        for place, chunk in enumerate(self.chunks):
            scores = self._kept.get(place)
            if scores is None:
                if self._table is not None:
                    scores = self._table[chunk.phrases]
                else:
                    scores = (self._embeddings[chunk.phrases] @ self._flat).view(-1, *self.shape)
                if self._keeps:
                    self._kept[place] = scores
            yield chunk, scores


def class_maximum(
    scores: Float[Tensor, "phrases windows patches"], chunk: PhraseChunk
) -> Float[Tensor, "classes windows patches"]:
    """Take the maximum over each class's phrases; a copy, so that it may be written into."""
    sizes = chunk.rank_sizes
    result = scores[: sizes[0]].clone()
    start = sizes[0]
    for size in sizes[1:]:
        torch.maximum(result[:size], scores[start : start + size], out=result[:size])
        start += size
    return result


@dataclass(frozen=True)
class SoftmaxStatistics:
    """What the second pass needs of the first.

    Attributes:
        log_total: Logarithm of the softmax's denominator of each patch.
        low: Smallest probability of any phrase and patch of a unit.
        high: Largest one.
    """

    log_total: Float[Tensor, "windows patches"]
    low: Float[Tensor, " units"]
    high: Float[Tensor, " units"]

    def normalize(
        self, probability: Float[Tensor, "rows *columns"], unit: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows *columns"]:
        """Map probabilities to [0, 1] by their unit's extremes; a unit without contrast maps to 1.

        Args:
            probability: One row a unit, or one a row of `unit`.
            unit: Unit of each row.
        """
        low, span = self.low, self.high - self.low
        if unit is not None:
            low, span = low[unit], span[unit]
        shape = (-1, *[1] * (probability.dim() - 1))
        low, span = low.view(shape), span.view(shape)
        scaled = (probability - low) / torch.where(span > 0, span, 1)
        return torch.where(span > 0, scaled, 1).clamp_(0, 1)


def softmax_statistics(scores: PhraseScores, units: Units) -> SoftmaxStatistics:
    """Run the first pass: denominator and extremes of the softmax over all phrases, background included.

    The denominator is summed in float64 across chunks, so that the chunk size does not show in the result.
    """
    lows, highs, sums = [], [], []
    for _, values in scores:
        high = values.amax(0)
        lows.append(values.amin(0))
        highs.append(high)
        sums.append((values - high).exp_().sum(0))
    low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    total = torch.stack(sums).double().mul_((torch.stack(highs) - high).double().exp()).sum(0)
    log_total = high + total.log().to(high.dtype)
    return SoftmaxStatistics(
        log_total,
        units.reduce((low - log_total).exp_().amin(1), "amin"),
        units.reduce((high - log_total).exp_().amax(1), "amax"),
    )


def class_peaks(
    log_probability: Float[Tensor, "classes windows patches"], units: Units
) -> Float[Tensor, "units classes"]:
    """Find the largest probability of each class in each unit."""
    return units.reduce(log_probability.amax(2).mT, "amax").exp()


def active_classes(
    peaks: Float[Tensor, "units classes"], statistics: SoftmaxStatistics
) -> Bool[Tensor, "units classes"]:
    """Tell which classes' normalized peak reaches one 8-bit level; all others have an empty region."""
    return statistics.normalize(peaks) * LEVELS >= 1 - ACTIVITY_SLACK
