"""What a scoring head is: a head that sees the words, and whose output is a score of each phrase at each patch."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace
from ovss_core.dense_heads.base import DenseHead

Evidence = Mapping[str, Tensor]
"""What a scoring head keeps of windows until the words are known: tables by name, one row a window."""


@dataclass(frozen=True)
class Words:
    """The words that windows are scored for; all rows are unit vectors.

    Attributes:
        phrases: The vocabulary's phrases.
        background: Which of them stand for the background class.
        others: Phrases that are not in the vocabulary (FreeCP's distractors); may have no rows.
    """

    phrases: Float[Tensor, "phrases features"]
    background: Bool[Tensor, " phrases"]
    others: Float[Tensor, "others features"]

    @property
    def foreground_mean(self) -> Float[Tensor, "1 features"]:
        """The mean, of unit length, of the phrases that do not stand for the background (of all, where none is left)."""
        counted = (~self.background).float()
        counted = torch.where(counted.sum() > 0, counted, torch.ones_like(counted))[:, None]
        return F.normalize((counted * self.phrases).sum(0, keepdim=True), dim=-1)


@dataclass(frozen=True)
class EncodedWindows:
    """What a scoring head made of windows of one size.

    Attributes:
        grid: Rows and columns of patches.
        features: The head's features, unit vectors.
        evidence: The rest of what it needs.
    """

    grid: tuple[int, int]
    features: Float[Tensor, "windows patches features"]
    evidence: Evidence


@dataclass(frozen=True)
class PhraseTables:
    """Scores at the patches of windows; cosines, or what stands for them.

    Attributes:
        phrases: Of the vocabulary's phrases.
        others: Of each other phrase, as if it alone joined the vocabulary.
    """

    phrases: Float[Tensor, "windows phrases patches"]
    others: Float[Tensor, "windows others patches"]


class ScoringHead(DenseHead):
    """Scores words in two steps: what it keeps of windows does not depend on the words, and serves any vocabulary.

    A scoring head is one file as any other. With FreeCP its scores take the place of cosines.
    """

    @property
    def sees_words(self) -> bool:
        """Whether these settings need the words; without them it is a plain dense head."""
        return True

    @abstractmethod
    def evidence(
        self, encoder: ImageEncoder, trace: EncoderTrace, windows: Float[Tensor, "windows 3 height width"]
    ) -> Evidence:
        """Keep what the scores need beside the features.

        Args:
            windows: Normalized pixels.
        """

    @abstractmethod
    def scores(self, encoder: ImageEncoder, encoded: EncodedWindows, words: Words) -> PhraseTables:
        """Score every phrase at every patch; float32."""

    def logits(self, scores: Tensor, scale: float) -> Tensor:
        """Return what FreeCP takes the softmax of, where it takes that of scale times a cosine otherwise."""
        return scores * scale


def as_scorer(head: DenseHead) -> ScoringHead | None:
    """Return the head if it needs to see the words."""
    return head if isinstance(head, ScoringHead) and head.sees_words else None


def join_evidence(parts: Sequence[Evidence]) -> Evidence | None:
    """Put the evidence of batches of windows together; None without any."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else None


def add_prior(scores: Tensor, prior: Tensor | None, share: float) -> Tensor:
    """Mix scores with those of the image as a whole; without a prior they stay as they are."""
    return scores if prior is None else (1 - share) * scores + share * prior


def cosines(features: Float[Tensor, "windows patches features"], words: Words) -> PhraseTables:
    """Return the cosines of unit features with all words."""
    maps = features.mT
    return PhraseTables(words.phrases @ maps, words.others @ maps)


def join_weights(
    logits: Float[Tensor, "*batch phrases"], others: Float[Tensor, "*batch others"]
) -> tuple[Float[Tensor, "*batch phrases"], Float[Tensor, "*batch others"]]:
    """Return the softmax over phrases, and the share of each other phrase if it alone joined them."""
    total = logits.logsumexp(-1, keepdim=True)
    return (logits - total).exp(), torch.sigmoid(others - total)
