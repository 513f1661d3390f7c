"""How strongly each phrase speaks at each patch of encoded windows: cosines, or what a scoring head says, and the class prior.

The class prior mixes every score with that of the image as a whole. Cosines are linear, so for them it is mixed into the
features (`WordScorer.mixed`); the scores of a scoring head are mixed themselves.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.dense_heads.scoring import EncodedWindows, PhraseTables, ScoringHead, Words, add_prior
from ovss_core.engine.waves import Encoded, Wave


class WordScorer:
    """Scores the words of one vocabulary.

    Args:
        words: The vocabulary's phrases, and the distractors.
        head: The dense head, where it sees the words; None scores by cosines with the features.
        encoder: The image tower, which a scoring head reads.
        prior: Share of the image as a whole in every score, `SegmenterConfig.class_prior`.
        scale: Factor on cosines before FreeCP's softmax.
        batch: Windows that a scoring head scores at once.

    Attributes:
        words: The same.
    """

    def __init__(
        self,
        words: Words,
        head: ScoringHead | None,
        encoder: ImageEncoder,
        prior: float,
        scale: float,
        batch: int,
    ) -> None:
        self.words = words
        self._head, self._encoder = head, encoder
        self._share, self._scale, self._batch = prior, scale, batch

    def tables(self, wave: Wave, encoded: Encoded) -> PhraseTables | None:
        """Let a scoring head score all words, in batches of windows; None where cosines are the scores."""
        if self._head is None:
            return None
        found = []
        for part in wave.parts(self._batch):
            evidence = {name: table[part] for name, table in (encoded.evidence or {}).items()}
            windows = EncodedWindows(wave.placement.grid, encoded.features[part], evidence)
            found.append(self._head.scores(self._encoder, windows, self.words))
        return PhraseTables(
            torch.cat([tables.phrases for tables in found]), torch.cat([tables.others for tables in found])
        )

    def maps(
        self, wave: Wave, encoded: Encoded, tables: PhraseTables | None
    ) -> tuple[Float[Tensor, "windows maps patches"], bool]:
        """Return what labels come from where they come from the head's own scores, and whether it is a score of each phrase.

        Where a vocabulary has more phrases than dimensions, the features go on instead of their cosines: they are smaller.

        Args:
            tables: What `tables` gave.
        """
        if tables is None:
            maps = self.mixed(wave, encoded, encoded.features).mT
            scored = len(self.words.phrases) <= maps.shape[1]
            return (self.words.phrases @ maps if scored else maps), scored
        return add_prior(tables.phrases, self._prior(wave, encoded, self.words.phrases), self._share), True

    def logits(
        self, wave: Wave, encoded: Encoded, sound: Bool[Tensor, " windows"], tables: PhraseTables | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return what FreeCP takes the softmax of, phrases first, for the vocabulary and for the distractors.

        None where that is a scaled cosine of the features, which purification computes itself.

        Args:
            sound: Windows of numbers; the others get zeros.
            tables: What `tables` gave.
        """
        if self._head is None or tables is None:
            return None
        made = []
        for scores, words in ((tables.phrases, self.words.phrases), (tables.others, self.words.others)):
            prior = self._prior(wave, encoded, words)
            logits = add_prior(
                self._head.logits(scores, self._scale),
                None if prior is None else self._scale * prior,
                self._share,
            )
            made.append(torch.where(sound[:, None, None], logits, 0).transpose(0, 1))
        return made[0], made[1]

    def mixed(
        self, wave: Wave, encoded: Encoded, features: Float[Tensor, "windows patches channels"]
    ) -> Float[Tensor, "windows patches channels"]:
        """Mix the image as a whole into the features of its patches, so that their cosines hold the class prior."""
        if encoded.whole is None:
            return features
        whole = encoded.whole[wave.placement.images.index][:, None]
        return torch.lerp(features, whole, self._share)

    def _prior(self, wave: Wave, encoded: Encoded, words: Tensor) -> Float[Tensor, "windows words 1"] | None:
        """Return the cosine of each window's image as a whole with the words."""
        if encoded.whole is None:
            return None
        return (encoded.whole @ words.T)[wave.placement.images.index][..., None]
