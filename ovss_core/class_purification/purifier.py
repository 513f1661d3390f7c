"""FreeCP on one page: from dense features to the classes an image keeps, their maps and its ambiguous regions.

"Training-Free Class Purification for Open-Vocabulary Semantic Segmentation" (ICCV 2025), over the windows of many
images at once. A vocabulary holds many words that an image does not. Redundancy purification removes the words that are
absent; ambiguity purification finds the words that claim one region, for the encoder to settle (`winners`).

A decision is made for a unit: the whole image (variants "image" and "filter") or each window ("released", "paper"). The
variants differ in that, in the score, in what a winner takes, and "filter" in that it labels without the maps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ovss_core.class_purification.class_maps import ClassMaps, WindowBatch
from ovss_core.class_purification.evidence import (
    PhraseChunk,
    PhraseScores,
    SoftmaxStatistics,
    active_classes,
    class_maximum,
    class_peaks,
    plan_chunks,
    softmax_statistics,
)
from ovss_core.class_purification.groups import AmbiguousGroups, find_ambiguous
from ovss_core.class_purification.null import keep_one, most_likely, null_threshold
from ovss_core.class_purification.on_device import MOST_COLUMNS, DevicePurifier, DeviceWords, NullRule
from ovss_core.class_purification.placement import Placement, Units
from ovss_core.class_purification.refinement import Affinity, balance, refine
from ovss_core.class_purification.room import Room
from ovss_core.class_purification.scores import (
    normalized_consistency,
    released_bound,
    released_score,
    spatial_consistency,
)
from ovss_core.config import BackgroundPolicy, PurificationConfig, published_thresholds
from ovss_core.kernels import use_kernel
from ovss_core.vocabulary import Vocabulary

BOUND_SLACK = 1e-6


@runtime_checkable
class ClassTexts(Protocol):
    """What purification reads of the text side; rows are L2-normalized."""

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

    @property
    def logit_scale(self) -> float:
        """Factor on cosines that the weights were trained with."""


@dataclass(frozen=True)
class Purified:
    """What purification decided about a batch of images.

    Attributes:
        scores: Redundancy score of each class (largest over the windows when windows decide); for a class too
            improbable to be kept whatever its map looks like, the bound m / (1 + m) that its score cannot exceed, m
            its peak probability; nan for background.
        kept: Refined maps q of the classes each image keeps; 0 where a window removed the class. A background class
            is among them only if it competes as a class.
        thresholds: The score that a class had to exceed; where windows decide, the lowest of an image's.
        groups: Ambiguous groups of images or windows, whichever decide; they still need winners.
        complete: Whether everything had room.
        needed: Classes of a chunk, and distractors of a chunk, whose maps the fullest unit had refined.
    """

    scores: Float[Tensor, "images classes"]
    kept: ClassMaps
    thresholds: Float[Tensor, " images"]
    groups: AmbiguousGroups
    complete: Bool[Tensor, ""]
    needed: Int[Tensor, "2"]


@dataclass(frozen=True)
class _Evidence:
    """What every step of one batch shares: who decides, and how likely and how connected the patches are."""

    batch: WindowBatch
    units: Units
    unit_images: Units
    affinity: Affinity
    statistics: SoftmaxStatistics


class ClassPurifier:
    """Decides which classes of a vocabulary an image keeps and where classes are ambiguous.

    Args:
        config: Variant, parts, thresholds. With redundancy off every class with a non-empty map is kept; with
            ambiguity off there are no groups.
        text: Embeddings of the vocabulary and of the distractors (for thresholds="distractors").
        background: The background class's phrases always take part in the softmax. "none" and "residual": it is
            dropped after that. "first_class": its map is always kept, unscored, and never ambiguous.
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
        self._is_background = torch.arange(self._classes, device=device) == (
            -1 if self._background is None else self._background
        )
        self._chunks = plan_chunks(np.asarray(text.phrase_class), config.phrase_chunk, device)
        self._null_chunks = plan_chunks(np.arange(len(self._nulls)), config.phrase_chunk, device)
        self._words = self._classes - (self._background is not None)
        self._numbers = config.numbers(self._words, text.logit_scale)
        self._rule, self._ceiling = _score_rule(config)
        self._on_device = self._build_device_form()

    @torch.inference_mode()
    def purify(self, batch: WindowBatch, room: Room | None = None) -> Purified:
        """Purify the classes of every image of the batch.

        Args:
            batch: Windows with features and mean attention.
            room: Fixes all shapes beforehand, so that nothing waits for a count; None counts.
        """
        # 1. Who decides: the image as a whole, or each of its windows as in the published forms.
        whole = self._config.by_image
        place = batch.placement
        units = place.images if whole else place.windows
        unit_images = Units.singles(units) if whole else place.images

        if room is not None and self._on_device is not None and batch.features.dtype == torch.float32:
            # The same in fused steps: what follows is their meaning.
            decided = self._on_device.decide(batch, room)
            groups = self._find_groups(place, decided.kept, room)
            complete = decided.complete & groups.complete
            return Purified(
                decided.scores, decided.kept, decided.thresholds, groups, complete, decided.needed
            )

        # 2. Evidence: a softmax over all phrases. Its denominator and extremes come first, because every later step
        #    compares probabilities and the vocabulary may be too large to hold all of them at once.
        made = batch.logits[0] if batch.logits else None
        phrases = self._phrase_scores(batch, self._embeddings, self._chunks, made)
        statistics = softmax_statistics(phrases, units)
        evidence = _Evidence(batch, units, unit_images, balance(batch.attention), statistics)

        # 3. Redundancy: a class stays when refinement along the attention confirms where it is. P is its probability
        #    map, q the same refined; its score is sum(P q) / (sum P + sum q), or by the paper their soft IoU.
        #    `complete` says whether the room that was fixed beforehand sufficed; if not, the caller makes it larger.
        thresholds, distractors = self._thresholds(evidence, room)
        scores, kept, complete, active = self._redundancy(evidence, phrases, thresholds, room)
        complete &= _fits(active, room.active if room else None)
        complete &= _fits(distractors, room.distractors if room else None)

        # 4. Ambiguity: kept classes whose maps coincide claim one region; the encoder will look at it.
        groups = self._find_groups(place, kept, room)

        # 5. An image has what any of its windows has.
        best = unit_images.reduce(scores, "amax").to(kept.maps.dtype)
        best = best.masked_fill(self._is_background, torch.nan)
        of_images = kept.by_image(place.images, self._classes, room.classes if room else None)
        return Purified(
            best,
            of_images,
            unit_images.reduce(thresholds, "amin"),
            groups,
            complete & groups.complete,
            torch.stack([active, distractors]),
        )

    def _find_groups(self, place: Placement, kept: ClassMaps, room: Room | None) -> AmbiguousGroups:
        if not self._config.ambiguity or kept.places < 2:
            return AmbiguousGroups.none(kept, by_window=not self._config.by_image)
        excluded = self._background if self._background_competes else None
        return find_ambiguous(place, kept, self._config, self._numbers.ambiguity, excluded, room)

    def _build_device_form(self) -> DevicePurifier | None:
        """Prepare the fused steps where they apply: images decide by the released score, and one chunk holds all words."""
        config, chunks = self._config, (self._chunks, self._null_chunks)
        fused = use_kernel(self._embeddings) and config.by_image and self._rule is released_score
        if not fused or len(self._chunks) != 1 or len(self._null_chunks) > 1:
            return None
        if any(len(chunk.classes) > MOST_COLUMNS for part in chunks for chunk in part):
            return None
        words, scale = self._words, self._numbers.score_scale
        nulls = DeviceWords.of(self._nulls, self._null_chunks[0], scale) if self._null_chunks else None
        floor, _ = published_thresholds(words)
        return DevicePurifier(
            config,
            DeviceWords.of(self._embeddings, self._chunks[0], scale),
            nulls,
            NullRule(words, self._ceiling, floor),
            self._numbers.redundancy,
            -1 if self._background is None else self._background,
            self._background_competes,
        )

    def _redundancy(
        self,
        evidence: _Evidence,
        phrases: PhraseScores,
        thresholds: Float[Tensor, " units"],
        room: Room | None,
    ) -> tuple[Float[Tensor, "units classes"], ClassMaps, Bool[Tensor, ""], Int[Tensor, ""]]:
        """Score all classes, chunk by chunk, and hold on to the maps of those that stay.

        Returns:
            The scores; the maps; whether they had room; how many classes of a chunk the fullest unit had refined.

        Chunks bound memory: maps exist only for the classes of one chunk that could still be kept. What a chunk keeps
        is decided a second time at the end, because the fall-back for an image that loses everything, its most likely
        class, is known only when all chunks have been seen; a chunk keeps at least what the end keeps.
        """
        units, most = evidence.units, room.classes if room else None
        scores = thresholds.new_zeros((len(units), self._classes))
        peaks = torch.zeros_like(scores)
        complete = torch.ones((), dtype=torch.bool, device=scores.device)
        most_active = torch.zeros((), dtype=torch.int64, device=scores.device)
        parts = []
        for chunk, values in phrases:
            classes = chunk.classes
            log_probability = class_maximum(values, chunk).sub_(evidence.statistics.log_total)
            if not self._background_competes:
                log_probability.masked_fill_(self._is_background[classes][:, None, None], -torch.inf)
            chunk_peaks = class_peaks(log_probability, units)
            peaks[:, classes] = chunk_peaks.double()
            # Most classes of a large vocabulary are ruled out here, before any of their maps is formed.
            wanted, bounds = self._worth_refining(evidence, classes, peaks[:, classes], thresholds)
            active = wanted & active_classes(chunk_peaks, evidence.statistics)
            most_active = torch.maximum(most_active, active.sum(1).max())
            places = None if room is None else room.active or len(classes)
            probability = _probability(units, classes, log_probability, active, places)
            refined = self._refine(evidence, probability)
            scored = _by_class(self._rule(probability, refined), probability, self._classes)
            scores[:, classes] = torch.where(wanted, scored[:, classes], bounds)
            stays = self._decide(evidence, classes, scores[:, classes], peaks[:, classes], thresholds)
            parts.append(refined.select(_of_places(stays, classes, refined, self._classes), most))
            complete &= self._have_room(stays, evidence, most)
        every = torch.arange(self._classes, device=scores.device)
        wanted, bounds = self._worth_refining(evidence, every, peaks, thresholds)
        scores = torch.where(wanted, scores, bounds)
        stays = self._decide(evidence, every, scores, peaks, thresholds)
        joined = ClassMaps.join(parts)
        complete &= self._have_room(stays, evidence, most)
        kept = joined.select(_of_places(stays, every, joined, self._classes), most)
        return scores, kept, complete, most_active

    def _have_room(self, stays: Tensor, evidence: _Evidence, most: int | None) -> Bool[Tensor, ""]:
        """Tell whether every image has a place for each class that any of its units keeps."""
        kept = evidence.unit_images.reduce(stays.int(), "amax").sum(1)
        return (kept <= (self._classes if most is None else most)).all()

    def _worth_refining(
        self, evidence: _Evidence, classes: Tensor, peaks: Tensor, thresholds: Tensor
    ) -> tuple[Bool[Tensor, "units classes"], Float[Tensor, "units classes"]]:
        """Tell which classes could be kept, and what the score of the others cannot exceed."""
        if self._rule is not released_score:
            return torch.ones_like(peaks, dtype=torch.bool), peaks
        bounds = released_bound(peaks)
        wanted = bounds > thresholds[:, None] - BOUND_SLACK
        if self._config.by_distractors:
            wanted |= most_likely(self._foreground(classes, peaks), evidence.unit_images)
        return wanted | self._is_background[classes], bounds

    def _decide(
        self, evidence: _Evidence, classes: Tensor, scores: Tensor, peaks: Tensor, thresholds: Tensor
    ) -> Bool[Tensor, "units classes"]:
        """Keep the classes whose score is strictly above their unit's threshold.

        An image that would lose all (by distractors only) keeps its most likely class.
        """
        stays = self._foreground(classes, scores) > thresholds[:, None]
        if self._config.by_distractors:
            likely = most_likely(self._foreground(classes, peaks), evidence.unit_images)
            stays = keep_one(stays, likely, evidence.unit_images)
        return stays | self._is_background[classes] if self._background_competes else stays

    def _thresholds(
        self, evidence: _Evidence, room: Room | None
    ) -> tuple[Float[Tensor, " units"], Int[Tensor, ""]]:
        """Find the score that a class must exceed in each unit; 0 asks only for a non-empty map.

        "distractors" scores words known to be from elsewhere, each as if it alone joined the vocabulary: by how much
        they are confirmed in this very image is what chance gives here.
        """
        units = evidence.units
        none = torch.zeros(len(units), dtype=torch.float64, device=evidence.batch.features.device)
        most_active = torch.zeros((), dtype=torch.int64, device=none.device)
        if not self._config.redundancy:
            return none, most_active
        if not self._config.by_distractors:
            return none + self._numbers.redundancy, most_active
        found = [none.new_zeros((len(units), 0))]
        made = evidence.batch.logits[1] if evidence.batch.logits else None
        for chunk, values in self._phrase_scores(evidence.batch, self._nulls, self._null_chunks, made):
            added = functional.logsigmoid(values - evidence.statistics.log_total)
            active = active_classes(class_peaks(added, units), evidence.statistics)
            most_active = torch.maximum(most_active, active.sum(1).max())
            places = None if room is None else room.distractors or len(chunk.classes)
            probability = _probability(units, chunk.classes, added, active, places)
            scored = self._rule(probability, self._refine(evidence, probability))
            found.append(_by_class(scored, probability, len(self._nulls))[:, chunk.classes])
        floor, _ = published_thresholds(self._words)
        return null_threshold(torch.cat(found, 1), self._words, self._ceiling, floor), most_active

    def _foreground(self, classes: Tensor, values: Tensor) -> Tensor:
        return values.masked_fill(self._is_background[classes], 0)

    def _phrase_scores(
        self, batch: WindowBatch, embeddings: Tensor, chunks: tuple[PhraseChunk, ...], made: Tensor | None
    ) -> PhraseScores:
        return PhraseScores(batch.features, embeddings, self._numbers.score_scale, chunks, made)

    def _refine(self, evidence: _Evidence, probability: ClassMaps) -> ClassMaps:
        grid, share = evidence.batch.placement.grid, self._config.box_threshold
        return refine(probability, evidence.statistics, evidence.affinity, grid, share)


def _score_rule(config: PurificationConfig) -> tuple[Callable[[ClassMaps, ClassMaps], Tensor], float]:
    """Return the rule that scores classes, and what its scores cannot exceed."""
    if config.variant != "paper":
        return released_score, 0.5
    return (spatial_consistency if config.consistency == "probability" else normalized_consistency), 1.0


def _fits(needed: Int[Tensor, ""], places: int | None) -> Bool[Tensor, ""]:
    """Tell whether so many classes had a place; None has made as many as needed."""
    return needed >= 0 if places is None else needed <= places


def _probability(
    units: Units, classes: Tensor, log_probability: Tensor, wanted: Tensor, places: int | None
) -> ClassMaps:
    """Form P for the wanted classes alone, in at most `places` places a unit; None counts."""
    capacity = None if places is None else min(places, len(classes))
    maps = ClassMaps.gather(units, classes, log_probability, wanted, empty=-torch.inf, capacity=capacity)
    return maps.with_maps(maps.maps.exp())


def _by_class(values: Tensor, maps: ClassMaps, classes: int) -> Float[Tensor, "units classes"]:
    """Spread a value of each place over a table of all classes; 0 for a class without a place."""
    column = torch.where(maps.used, maps.classes, classes)
    table = values.new_zeros((len(values), classes + 1)).scatter_(1, column, values)
    return table[:, :classes]


def _of_places(
    stays: Bool[Tensor, "units columns"], classes: Tensor, maps: ClassMaps, count: int
) -> Bool[Tensor, "units places"]:
    """Look up a decision about some classes for each place."""
    table = stays.new_zeros((len(stays), count))
    table[:, classes] = stays
    return table.gather(1, maps.classes.clamp_min(0)) & maps.used
