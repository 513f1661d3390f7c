"""Redundancy purification in few launches: what `purifier` does step by step, where images decide and shapes are known.

On a GPU a launch costs as much as the work on a table of a few classes. So the steps between two matrix products are one
kernel each (`kernels.evidence_triton`). `purifier` says what they mean, and does the rest: windows that decide, the
paper's scores, vocabularies of several chunks, and images that need more room than there is.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.class_maps import ClassMaps, WindowBatch
from ovss_core.class_purification.evidence import PhraseChunk
from ovss_core.class_purification.null import LEAST_SCORE, NullFit
from ovss_core.class_purification.refinement import EPSILON, FLATNESS, Affinity, balance, spread
from ovss_core.class_purification.regions import box_union, threshold_levels
from ovss_core.class_purification.room import Room
from ovss_core.config import PurificationConfig

if TYPE_CHECKING:
    from ovss_core.kernels.evidence_triton import Active

MOST_COLUMNS = 1 << 12
"""Classes that a program holds at once."""


@dataclass(frozen=True)
class DeviceWords:
    """The phrases of one chunk, ready to be scored.

    Attributes:
        embeddings: Scaled, in the chunk's order.
        order: The chunk's phrases.
        classes: Class of each column.
        starts, sizes: First row and number of the first, second, ... phrases.
    """

    embeddings: Float[Tensor, "phrases channels"]
    order: Int[Tensor, " phrases"]
    classes: Int[Tensor, " columns"]
    starts: Int[Tensor, " ranks"]
    sizes: Int[Tensor, " ranks"]

    @classmethod
    def of(cls, embeddings: Float[Tensor, "all channels"], chunk: PhraseChunk, scale: float) -> "DeviceWords":
        """Order and scale the embeddings of a chunk's phrases."""
        sizes = torch.tensor(chunk.rank_sizes, dtype=torch.int32)
        starts, device = (sizes.cumsum(0) - sizes).int(), embeddings.device
        scaled = embeddings.float()[chunk.phrases] * scale
        return cls(scaled, chunk.phrases, chunk.classes, starts.to(device), sizes.to(device))

    def score(self, batch: WindowBatch, made: Tensor | None) -> Float[Tensor, "phrases windows patches"]:
        """Score the phrases at all patches; `made` are scores that the head has computed itself."""
        if made is not None:
            return made[self.order].contiguous()
        windows, patches, _ = batch.features.shape
        return (self.embeddings @ batch.features.flatten(0, 1).mT).view(-1, windows, patches)


@dataclass(frozen=True)
class NullRule:
    """How a threshold follows from the scores of distractors; see `null.null_threshold`."""

    classes: int
    ceiling: float
    floor: float


@dataclass(frozen=True)
class Decided:
    """What `purifier.Purified` says of scores and kept classes, under the same names."""

    scores: Float[Tensor, "images classes"]
    kept: ClassMaps
    thresholds: Float[Tensor, " images"]
    complete: Bool[Tensor, ""]
    needed: Int[Tensor, "2"]


class DevicePurifier:
    """Decides which classes an image keeps.

    Args:
        config: Of purification.
        words: The vocabulary's phrases.
        nulls: Those of the distractors, if there are any.
        null_rule: How they make a threshold.
        redundancy: The threshold otherwise.
        background: Index of the background class, or -1.
        competes: Whether that class is kept.
    """

    def __init__(
        self,
        config: PurificationConfig,
        words: DeviceWords,
        nulls: DeviceWords | None,
        null_rule: NullRule,
        redundancy: float,
        background: int,
        competes: bool,
    ) -> None:
        self._config = config
        self._words, self._nulls, self._null_rule = words, nulls, null_rule
        self._likely = config.redundancy and config.by_distractors
        self._fixed = redundancy if config.redundancy else 0.0
        if self._likely and nulls is None:
            self._fixed = null_rule.floor
        self._background, self._competes = background, competes
        self._column_of = words.classes.argsort().int()
        self._background_column = words.classes.tolist().index(background) if background >= 0 else -1
        self._fit = NullFit.of(len(nulls.classes), null_rule.classes) if nulls is not None else None
        self._normal = self._fit.normal(words.embeddings.device) if self._fit else None

    def decide(self, batch: WindowBatch, room: Room) -> Decided:
        """Do steps 2, 3 and 5 of `purifier.ClassPurifier.purify`."""
        from ovss_core.kernels.evidence_triton import (
            launch_decide,
            launch_needs,
            launch_null,
            launch_statistics,
            launch_take,
        )

        units = batch.placement.images
        made, null_made = batch.logits or (None, None)
        scores = self._words.score(batch, made)
        statistics = launch_statistics(scores)
        affinity = balance(batch.attention)
        null_counts, null_places = None, 0
        if self._likely and self._nulls is not None and self._fit is not None and self._normal is not None:
            null_places = min(room.distractors or len(self._nulls.classes), len(self._nulls.classes))
            null_scores = self._nulls.score(batch, null_made)
            active, _, table = self._confirm(
                null_scores, self._nulls, statistics, affinity, batch, null_places, None
            )
            null_counts, fit, rule = active.counts, self._fit, self._null_rule
            ranked = table.sort(1, descending=True).values
            thresholds = launch_null(
                ranked,
                self._normal,
                fit.first,
                fit.own,
                fit.target,
                rule.ceiling,
                rule.floor,
                fit.enough,
                LEAST_SCORE,
            )
        else:
            fixed = torch.full((len(units),), self._fixed, dtype=torch.float64, device=scores.device)
            thresholds = fixed
        places = min(room.active or len(self._words.classes), len(self._words.classes))
        active, refined, table = self._confirm(
            scores, self._words, statistics, affinity, batch, places, thresholds
        )
        most = min(room.classes, places)
        best, classes, source, counts = launch_decide(
            active,
            table,
            self._column_of,
            thresholds,
            most,
            self._background,
            self._competes,
            self._likely,
        )
        needed, complete = launch_needs(active.counts, null_counts, counts, places, null_places, most)
        kept = ClassMaps(units, classes, launch_take(refined, source, units.index))
        return Decided(best, kept, thresholds, complete, needed)

    def _confirm(
        self,
        scores: Tensor,
        words: DeviceWords,
        statistics: tuple[Tensor, Tensor, Tensor],
        affinity: Affinity,
        batch: WindowBatch,
        places: int,
        thresholds: Tensor | None,
    ) -> "tuple[Active, Tensor, Tensor]":
        """Refine the maps that are worth it, and score their columns.

        Args:
            thresholds: Of classes; None for distractors, each of which joins the vocabulary alone.

        Returns:
            Who has a place; refined maps [windows, places, patches]; scores [images, columns].
        """
        from ovss_core.kernels.evidence_triton import (
            Ranks,
            launch_active,
            launch_maps,
            launch_peaks,
            launch_refined,
        )

        units, grid = batch.placement.images, batch.placement.grid
        log_total, low, high = statistics
        ranks, alone = Ranks(words.starts, words.sizes), thresholds is None
        peaks = launch_peaks(scores, ranks, len(words.classes), log_total, alone)
        background = -1 if alone else self._background_column
        active = launch_active(
            *(peaks, low, high, units.slots, places, thresholds, background, self._competes, self._likely)
        )
        levels = threshold_levels(self._config.box_threshold, scores.device)
        probability, normalized, regions = launch_maps(
            scores, ranks, log_total, units.slots, units.used, active, levels, alone
        )
        inside = box_union(regions.flatten(0, 1).unflatten(1, grid)).view_as(regions)
        moved = spread(affinity, normalized * inside)
        refined, table = launch_refined(
            moved, probability, units.slots, units.used, active, FLATNESS, EPSILON
        )
        return active, refined, table
