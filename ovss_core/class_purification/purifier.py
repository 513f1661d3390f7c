"""FreeCP from dense features to the classes an image keeps, their maps and its ambiguous regions.

"Training-Free Class Purification for Open-Vocabulary Semantic Segmentation" (ICCV 2025), over the windows of
many images at once. A decision is made for a unit: the whole image (variant "image") or each window
("released", "paper"); the three variants differ in that, in the score and in what a winner takes.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ovss_core.class_purification.affinity import Affinity, balance
from ovss_core.class_purification.assembly import KeptRows, assemble, join_rows, propose_groups
from ovss_core.class_purification.batch import PurificationInput, Units
from ovss_core.class_purification.evidence import (
    PhraseChunk,
    PhraseScores,
    SoftmaxStatistics,
    active_pairs,
    class_maximum,
    class_peaks,
    plan_chunks,
    softmax_statistics,
)
from ovss_core.class_purification.redundancy import (
    ScoredClasses,
    released_bound,
    released_score,
    score_classes,
    spatial_consistency,
)
from ovss_core.class_purification.thresholds import keep_one, most_likely, null_threshold
from ovss_core.class_purification.winners import ImagePurification
from ovss_core.config import BackgroundPolicy, PurificationConfig
from ovss_core.vocabulary import Vocabulary

__all__ = ["BackgroundPolicy", "ClassPurifier", "ClassTexts", "PurificationInput"]

BOUND_SLACK = 1e-6


@runtime_checkable
class ClassTexts(Protocol):
    """What purification reads of the text side; rows are L2-normalised."""

    @property
    def phrase_embeddings(self) -> Tensor:
        """One row a phrase of the vocabulary."""

    @property
    def phrase_class(self) -> Tensor | np.ndarray:
        """Class of each phrase."""

    @property
    def null_embeddings(self) -> Tensor:
        """One row a distractor phrase; may have no rows."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes."""


@dataclass(frozen=True)
class _Scene:
    """What every step of one batch shares."""

    batch: PurificationInput
    units: Units
    unit_image: Int[Tensor, " units"]
    affinity: Affinity
    statistics: SoftmaxStatistics

    @property
    def images(self) -> int:
        return len(self.batch.image_sizes)


class ClassPurifier:
    """Decides which classes of a vocabulary an image keeps and where classes are ambiguous.

    Args:
        config: Variant, parts, thresholds. With redundancy off every class with a non-empty map is kept;
            with ambiguity off there are no groups.
        text: Embeddings of the vocabulary and of the distractors (for thresholds="auto").
        background: The background class's phrases always take part in the softmax. "none" and "residual": it
            is dropped after that. "first_class": its map is always kept, unscored, and never ambiguous.
        device: Where the embeddings are held.
    """

    def __init__(
        self,
        config: PurificationConfig,
        text: ClassTexts,
        background: BackgroundPolicy,
        device: torch.device | str = "cpu",
    ) -> None:
        self._config = config
        self._embeddings = text.phrase_embeddings.to(device)
        self._nulls = text.null_embeddings.to(device)
        self._classes = len(text.vocabulary)
        self._background = text.vocabulary.background_index
        self._background_competes = background == "first_class"
        self._chunks = plan_chunks(np.asarray(text.phrase_class), config.phrase_chunk)
        self._null_chunks = plan_chunks(np.arange(len(self._nulls)), config.phrase_chunk)
        self._rule = spatial_consistency if config.variant == "paper" else released_score
        self._rule_ceiling = 1.0 if config.variant == "paper" else 0.5

    @property
    def _auto(self) -> bool:
        return self._config.redundancy and self._config.thresholds == "auto"

    def purify(self, batch: PurificationInput) -> list[ImagePurification]:
        """Purify the classes of every image of the batch.

        Args:
            batch: Windows with features and mean attention.

        Returns:
            One result an image, in order. Groups still need winners (`pick_winners`, `resolve_groups`).
        """
        units = self._units(batch)
        phrases = self._phrase_scores(batch, self._embeddings, self._chunks)
        scene = _Scene(
            batch,
            units,
            batch.image_index[units.first],
            balance(batch.attention),
            softmax_statistics(phrases, units),
        )
        scores, rows = self._redundancy(scene, phrases)
        excluded = self._background if self._background_competes else None
        groups = propose_groups(batch, units, rows, self._config, excluded)
        return assemble(batch, scene.unit_image, scores, rows, groups)

    def _units(self, batch: PurificationInput) -> Units:
        if self._config.variant == "image":
            return Units(batch.image_index, len(batch.image_sizes))
        windows = len(batch.image_index)
        return Units(torch.arange(windows, device=batch.image_index.device), windows)

    def _phrase_scores(
        self, batch: PurificationInput, embeddings: Tensor, chunks: tuple[PhraseChunk, ...]
    ) -> PhraseScores:
        return PhraseScores(batch.features, embeddings, self._config.score_scale, chunks)

    def _score(self, scene: _Scene, log_probability: Tensor, active: Tensor) -> ScoredClasses:
        return score_classes(
            log_probability,
            active,
            scene.statistics,
            scene.units,
            scene.affinity,
            scene.batch.grid,
            self._config.box_threshold,
            self._rule,
        )

    def _redundancy(self, scene: _Scene, phrases: PhraseScores) -> tuple[Tensor, KeptRows]:
        """Score all classes, chunk by chunk, and hold on to the maps of those that may stay."""
        thresholds = self._thresholds(scene)
        scores = thresholds.new_zeros((self._classes, scene.units.count))
        peaks = torch.zeros_like(scores)
        parts: list[KeptRows] = []
        for chunk, values in phrases:
            classes = chunk.classes.to(values.device)
            log_probability = class_maximum(values, chunk).sub_(scene.statistics.log_total)
            if not self._background_competes:
                log_probability[self._is_background(classes)] = -torch.inf
            chunk_peaks = class_peaks(log_probability, scene.units)
            peaks[classes] = chunk_peaks.double()
            wanted, bounds = self._worth_refining(scene, classes, peaks[classes], thresholds)
            scored = self._score(scene, log_probability, wanted & active_pairs(chunk_peaks, scene.statistics))
            scores[classes] = torch.where(wanted, scored.scores, bounds)
            kept = self._decide(scene, classes, scores[classes], peaks[classes], thresholds)
            rows = KeptRows(scored.window, classes[scored.column], scored.unit, scored.maps)
            parts.append(rows.select(kept[scored.column, scored.unit]))
        every = torch.arange(self._classes, device=scores.device)
        wanted, bounds = self._worth_refining(scene, every, peaks, thresholds)
        scores = torch.where(wanted, scores, bounds)
        kept = self._decide(scene, every, scores, peaks, thresholds)
        rows = join_rows(parts)
        scores[self._is_background(every)] = torch.nan
        return scores, rows.select(kept[rows.class_index, rows.unit])

    def _is_background(self, classes: Tensor) -> Tensor:
        return classes == (-1 if self._background is None else self._background)

    def _worth_refining(
        self, scene: _Scene, classes: Tensor, peaks: Tensor, thresholds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tell which pairs could be kept, and what the score of the others cannot exceed."""
        if self._rule is not released_score:
            return torch.ones_like(peaks, dtype=torch.bool), peaks
        bounds = released_bound(peaks)
        wanted = bounds > thresholds - BOUND_SLACK
        if self._auto:
            wanted |= most_likely(self._foreground(classes, peaks), scene.unit_image, scene.images)
        return wanted | self._is_background(classes)[:, None], bounds

    def _foreground(self, classes: Tensor, values: Tensor) -> Tensor:
        return values.masked_fill(self._is_background(classes)[:, None], 0)

    def _decide(
        self, scene: _Scene, classes: Tensor, scores: Tensor, peaks: Tensor, thresholds: Tensor
    ) -> Bool[Tensor, "classes units"]:
        """Keep the classes whose score is strictly above their unit's threshold.

        An image that would lose all (automatic thresholds only) keeps its most likely class. For the classes
        of one chunk this keeps at least those that are kept in the end.
        """
        kept = self._foreground(classes, scores) > thresholds
        if self._auto:
            likely = most_likely(self._foreground(classes, peaks), scene.unit_image, scene.images)
            kept = keep_one(kept, likely, scene.unit_image, scene.images)
        if self._background_competes:
            kept |= self._is_background(classes)[:, None]
        return kept

    def _thresholds(self, scene: _Scene) -> Float[Tensor, " units"]:
        """Find the score that a class must exceed in each unit; 0 asks only for a non-empty map."""
        result = torch.zeros(scene.units.count, dtype=torch.float64, device=scene.unit_image.device)
        if not self._config.redundancy:
            return result
        if not self._auto:
            return result + self._config.redundancy_threshold
        nulls = [result.new_zeros((0, scene.units.count))]
        for _, values in self._phrase_scores(scene.batch, self._nulls, self._null_chunks):
            added = functional.logsigmoid(values - scene.statistics.log_total)
            active = active_pairs(class_peaks(added, scene.units), scene.statistics)
            nulls.append(self._score(scene, added, active).scores)
        classes = self._classes - (self._background is not None)
        return null_threshold(torch.cat(nulls), classes, self._rule_ceiling)
