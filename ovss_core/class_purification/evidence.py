"""How strongly each class speaks for each patch: the softmax over all phrases, in bounded memory.

Phrases are scored in chunks that never split a class. A first pass finds the softmax's denominator and
its extremes; a second forms probabilities only where a class could clear one 8-bit level (FreeCP's box
rule leaves every other map empty, its score zero) and still be kept, so that later work hardly grows with
the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.batch import Units
from ovss_core.class_purification.boxes import LEVELS

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


def plan_chunks(phrase_class: Sequence[int] | np.ndarray, size: int) -> tuple[PhraseChunk, ...]:
    """Pack whole classes into chunks of at most `size` phrases; a class with more gets a chunk of its own.

    Args:
        phrase_class: The class of each phrase, in any order.
        size: Phrases scored at once.
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
    return tuple(_chunk(np.array(members), classes, first, counts, order) for members in chunks)


def _chunk(
    members: np.ndarray, classes: np.ndarray, first: np.ndarray, counts: np.ndarray, order: np.ndarray
) -> PhraseChunk:
    members = members[np.argsort(-counts[members], kind="stable")]
    ranks = [members[counts[members] > rank] for rank in range(counts[members[0]])]
    phrases = np.concatenate([order[first[rank_members] + rank] for rank, rank_members in enumerate(ranks)])
    return PhraseChunk(
        torch.from_numpy(classes[members].astype(np.int64)),
        torch.from_numpy(phrases.astype(np.int64)),
        tuple(len(rank_members) for rank_members in ranks),
    )


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

    def normalise(self, probability: Tensor, unit: Tensor) -> Tensor:
        """Map probabilities to [0, 1] by their unit's extremes; a unit without contrast maps to 1.

        Args:
            probability: [..., rows] or [rows, N]; `unit` must broadcast against it.
            unit: Unit of each entry.
        """
        span = (self.high - self.low)[unit]
        scaled = (probability - self.low[unit]) / torch.where(span > 0, span, 1)
        return torch.where(span > 0, scaled, 1).clamp_(0, 1)


class PhraseScores:
    """Scaled cosines of every patch with the phrases of one chunk after the other.

    Args:
        features: L2-normalised patch features; scored in float32 or wider.
        embeddings: L2-normalised phrase embeddings.
        scale: Factor on the cosines.
        chunks: From `plan_chunks`. Scores are computed once and kept if there is one chunk, or if all are few.
    """

    def __init__(
        self,
        features: Float[Tensor, "windows patches channels"],
        embeddings: Float[Tensor, "phrases channels"],
        scale: float,
        chunks: Sequence[PhraseChunk],
    ) -> None:
        wide = torch.promote_types(features.dtype, torch.float32)
        self.shape = features.shape[:2]
        self._flat = features.to(wide).flatten(0, 1).mT
        self._embeddings = embeddings.to(features.device, wide) * scale
        self.chunks = chunks
        self._keeps = len(chunks) == 1 or len(embeddings) * self._flat.shape[1] <= KEPT_SCORES
        self._kept: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[PhraseChunk, Tensor]]:
        """Yield each chunk with its scores [phrases, windows, patches]; callers may not write into them."""
        for place, chunk in enumerate(self.chunks):
            scores = self._kept.get(place)
            if scores is None:
                phrases = chunk.phrases.to(self._embeddings.device)
                scores = (self._embeddings[phrases] @ self._flat).view(len(phrases), *self.shape)
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


@dataclass(frozen=True)
class ActiveRows:
    """The maps of the active (class, unit) pairs, one row for each of the unit's windows.

    Attributes:
        window: Window of each row.
        pair: column * units + unit of each row; rows of a pair are neighbours.
        pairs: Number of possible pairs.
        probability: P, softmax over all phrases, maximum over synonyms.
        normalised: P min-max normalised over the unit and all phrases.
    """

    window: Int[Tensor, " rows"]
    pair: Int[Tensor, " rows"]
    pairs: int
    probability: Float[Tensor, "rows patches"]
    normalised: Float[Tensor, "rows patches"]


def class_peaks(
    log_probability: Float[Tensor, "classes windows patches"], units: Units
) -> Float[Tensor, "classes units"]:
    """Find the largest probability of each class in each unit."""
    return units.reduce(log_probability.amax(2), "amax").exp_()


def active_pairs(
    peaks: Float[Tensor, "classes units"], statistics: SoftmaxStatistics
) -> Bool[Tensor, "classes units"]:
    """Tell which classes' normalised peak reaches one 8-bit level; all others have an empty region."""
    every = torch.arange(peaks.shape[1], device=peaks.device)
    return statistics.normalise(peaks, every) * LEVELS >= 1 - ACTIVITY_SLACK


def collect_rows(
    log_probability: Float[Tensor, "classes windows patches"],
    active: Bool[Tensor, "classes units"],
    statistics: SoftmaxStatistics,
    units: Units,
) -> ActiveRows:
    """Form the maps of the active classes, in every window of their unit.

    Args:
        log_probability: Logarithm of each class's probability.
        active: The pairs wanted.
        statistics: Of the same windows.
        units: Of the same windows.
    """
    column, window = active[:, units.index].nonzero(as_tuple=True)
    unit = units.index[window]
    probability = log_probability[column, window].exp_()
    return ActiveRows(
        window,
        column * units.count + unit,
        log_probability.shape[0] * units.count,
        probability,
        statistics.normalise(probability, unit[:, None]),
    )
