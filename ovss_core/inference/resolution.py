"""Stage 2 for a batch of images: winners of the ambiguous regions, and labels at each image's own size."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from ovss_core.check import background_policy
from ovss_core.class_purification.winners import (
    BoxEdit,
    ImagePurification,
    apply_box_edits,
    pick_winners,
    resolve_groups,
)
from ovss_core.config import SegmenterConfig
from ovss_core.encoders.image_encoder import ImageEncoder
from ovss_core.encoders.positional import Resampling
from ovss_core.encoders.text_encoder import TextClassifier
from ovss_core.errors import ImageError
from ovss_core.inference.finiteness import CROPS, SCORES, not_finite, raise_first
from ovss_core.inference.labels import (
    Labels,
    PhraseScores,
    label_by_probability,
    label_by_purified_maps,
)
from ovss_core.inference.proposal import PhraseFeatures, Proposal, PurifiedClasses
from ovss_core.inference.stitching import Stitcher
from ovss_core.inference.windows import WindowLayout
from ovss_core.segmentation import (
    AmbiguityGroup,
    BoxDecision,
    ScoredClass,
    Segmentation,
    summarise_labels,
)

Winners = list[list[int | None]]
CROPS_PER_WINDOW = 4  # a crop has about a quarter of a window's tokens


class Resolver:
    """Turns proposals into labels.

    Args:
        config: Decides the rules.
        text: Class descriptions and names.
        encoder: Encodes the crops.
        device: Where to compute.
        window_batch: Windows whose tokens are encoded at once.
        resampling: How the host's tower resamples positions; the released code encodes crops by the same rule.
    """

    def __init__(
        self,
        config: SegmenterConfig,
        text: TextClassifier,
        encoder: ImageEncoder,
        device: torch.device,
        window_batch: int,
        resampling: Resampling = "scale",
    ) -> None:
        self._config = config
        self._vocabulary = text.vocabulary
        self._encoder = encoder
        self._device = device
        self._resampling = resampling
        self._crop_batch = window_batch * CROPS_PER_WINDOW
        self._phrases = text.phrase_embeddings.to(device)
        self._phrase_class = text.phrase_class.to(device)
        self._descriptions = text.description_embeddings.to(device)
        policy = background_policy(config, text.vocabulary)
        self._residual = text.vocabulary.background_index if policy == "residual" else None

    def winners(self, proposals: Sequence[Proposal]) -> list[Winners]:
        """Encode the crops of all proposals in full batches and pick each region's winner.

        Returns:
            For each proposal, group and box the winning class, None for a degenerate box.

        Raises:
            ImageError: The features of an image's crops are not finite.
        """
        return raise_first(self.winners_each(proposals))

    def winners_each(self, proposals: Sequence[Proposal]) -> list[Winners | ImageError]:
        """Do as `winners`; an image with a crop whose features are not finite has the error in its place."""
        contents = [proposal.content for proposal in proposals]
        purified = [content for content in contents if isinstance(content, PurifiedClasses)]
        candidates = [content.groups[group].classes for content in purified for group, _ in content.crop_of]
        picked = iter(self._pick([content.crops for content in purified if len(content.crops)], candidates))
        result: list[Winners | ImageError] = []
        for content in contents:
            groups = content.groups if isinstance(content, PurifiedClasses) else ()
            winners: Winners = [[None] * len(group.boxes) for group in groups]
            sound = True
            for group, box in content.crop_of if isinstance(content, PurifiedClasses) else ():
                winners[group][box], finite = next(picked)
                sound &= finite
            result.append(winners if sound else not_finite(CROPS))
        return result

    def _pick(self, crops: list[np.ndarray], candidates: list[tuple[int, ...]]) -> list[tuple[int, bool]]:
        """Return each crop's winner, and whether its features are finite."""
        if not candidates:
            return []
        stacked = torch.from_numpy(np.concatenate(crops))
        features = torch.cat(
            [
                F.normalize(
                    self._encoder.class_features(part.to(self._device), self._resampling).float(), dim=-1
                )
                for part in stacked.split(self._crop_batch)
            ]
        )
        sums = features.square().sum(1)
        winners = pick_winners(features, self._descriptions, candidates)
        return list(zip(winners, (sums.isfinite() & (sums > 0)).tolist(), strict=True))

    def label(self, proposal: Proposal, winners: Winners) -> Segmentation:
        """Assign labels to one image at its own size.

        Raises:
            ImageError: Its scores are not finite.
        """
        stitcher = self.stitcher(proposal)
        if isinstance(proposal.content, PhraseFeatures):
            return self._summarise(self._label_phrases(proposal.content, stitcher))
        return self._label_purified(proposal, proposal.content, winners, stitcher)

    def stitcher(self, proposal: Proposal) -> Stitcher:
        """Return what stitches the window maps of one image at its own size."""
        layout = WindowLayout.of(*proposal.resized, self._config.windows)
        return Stitcher(layout, self._encoder.grid_of(layout.window_size), proposal.size)

    def _label_phrases(self, content: PhraseFeatures, stitcher: Stitcher) -> Labels:
        values = torch.from_numpy(content.values).to(self._device)
        cosines = values if content.scored else values @ self._phrases.T
        maps = cosines.permute(2, 0, 1).unflatten(2, stitcher.grid)
        scores = PhraseScores(
            stitcher.side_by_side(maps),
            self._phrase_class,
            len(self._vocabulary),
            self._vocabulary.background_index,
        )
        return label_by_probability(scores, stitcher, self._config.labels)

    def _label_purified(
        self, proposal: Proposal, content: PurifiedClasses, winners: Winners, stitcher: Stitcher
    ) -> Segmentation:
        purification = self._keep_something(content)
        maps, edits = resolve_groups(
            purification, winners, self._config.purification.variant, self._encoder.patch_size
        )
        scaled = [edit.scaled(proposal.resized, proposal.size) for edit in edits]
        labels = label_by_purified_maps(
            stitcher.side_by_side(maps),
            purification.kept,
            len(self._vocabulary),
            self._residual,
            stitcher,
            partial(_apply_edits, scaled) if scaled else None,
        )
        segmentation = self._summarise(labels)
        names, scores = self._vocabulary.names, content.scores
        kept = set(purification.kept.tolist())
        scored = [
            ScoredClass(index, names[index], float(scores[index]))
            for index in range(len(names))
            if index in kept or not np.isnan(scores[index])
        ]
        return Segmentation(
            segmentation.label_map,
            segmentation.present,
            kept=tuple(entry for entry in scored if entry.index in kept),
            removed=tuple(entry for entry in scored if entry.index not in kept),
            groups=self._decisions(proposal, content, winners, stitcher.layout),
        )

    def _keep_something(self, content: PurifiedClasses) -> ImagePurification:
        """Fall back to the best-scored class where all were removed and no background can take the image."""
        kept = torch.from_numpy(content.kept).to(self._device)
        maps = torch.from_numpy(content.maps).to(self._device)
        if len(kept) == 0 and self._residual is None:
            kept = torch.tensor([int(np.nanargmax(content.scores))], device=self._device)
            maps = maps.new_zeros((1, *maps.shape[1:]))
        scores = torch.from_numpy(content.scores)
        return ImagePurification(scores, kept, maps, content.groups)

    def _decisions(
        self, proposal: Proposal, content: PurifiedClasses, winners: Winners, layout: WindowLayout
    ) -> tuple[AmbiguityGroup, ...]:
        """Report the groups with boxes in pixels of the image."""
        y_scale = proposal.size[0] / proposal.resized[0]
        x_scale = proposal.size[1] / proposal.resized[1]
        groups = []
        for group, decided in zip(content.groups, winners, strict=True):
            top, left = (0, 0) if group.window is None else layout.origins[group.window]
            boxes = tuple(
                BoxDecision(
                    round((left + x0) * x_scale),
                    round((top + y0) * y_scale),
                    round((left + x1) * x_scale),
                    round((top + y1) * y_scale),
                    winner,
                )
                for (x0, y0, x1, y1), winner in zip(group.boxes, decided, strict=True)
            )
            groups.append(AmbiguityGroup(group.classes, boxes))
        return tuple(groups)

    def _summarise(self, labels: Labels) -> Segmentation:
        label_map = labels.label_map.cpu().numpy().astype(self._vocabulary.mask_dtype)
        sums = labels.confidence_sums.cpu().numpy()
        if not np.isfinite(sums).all():
            raise not_finite(SCORES)
        present = summarise_labels(label_map, sums, self._vocabulary)
        return Segmentation(label_map, present)


def _apply_edits(edits: list[BoxEdit], scores: torch.Tensor, first_row: int) -> torch.Tensor:
    return apply_box_edits(scores, first_row, edits)
