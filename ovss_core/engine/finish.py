"""Stage 2 for a batch of images: winners of the ambiguous regions, and labels at each image's own size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.class_maps import NOBODY, ClassMaps
from ovss_core.class_purification.placement import Units
from ovss_core.class_purification.winners import (
    AmbiguousRegions,
    LabelEdits,
    pick_winners,
    remove_losers,
    scale_boxes,
)
from ovss_core.clip.positions import Resampling
from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.tower import ImageEncoder
from ovss_core.config import BackgroundPolicy, SegmenterConfig
from ovss_core.engine.crops import encode_crops
from ovss_core.engine.facts import facts_of_image
from ovss_core.engine.finite import CROPS, PICTURES, SCORES, WINDOWS, finite_rows, not_finite
from ovss_core.engine.kept_words import kept_table, scores_of_kept_words
from ovss_core.engine.label_strips import Labels, budget, held_maps
from ovss_core.engine.labels import PhraseRule, label_by_probability, label_by_purified_maps
from ovss_core.engine.proposal import Decisions, Proposals
from ovss_core.engine.refined import RefinedScores
from ovss_core.errors import ConfigError, ImageError
from ovss_core.images.resize import normalize
from ovss_core.images.stitch import Stitcher, chunk_by_area
from ovss_core.images.windows import PatchGrid
from ovss_core.refiners import Guide, ScoreMaps, build_refiner
from ovss_core.regions import RegionMap, vote
from ovss_core.results import (
    AmbiguityGroup,
    BoxDecision,
    Confidence,
    PresentClass,
    ScoredClasses,
    Segmentation,
)
from ovss_core.transfer import Download, upload
from ovss_core.vocabulary_filter.car import FilteredWords, FilterWords, WordFilter

CROPS_PER_WINDOW = 4  # a crop has about a quarter of a window's tokens
_Decided = tuple[ScoredClasses, ScoredClasses, tuple[AmbiguityGroup, ...]]
"""Kept and removed classes, and ambiguous groups."""


@dataclass(frozen=True)
class BegunLabels:
    """What the device was given to do for a batch of images, and what else their labels are made of.

    Attributes:
        proposals: Of the images, without maps.
        parts: Which images each of `downloads` holds.
        downloads: Their label maps, with counts and sums by class.
        winners: Of each region that has an area the winner's position, and whether its crop is finite; with purification.
        unseen: Images for which CaR's pictures of words were not finite.
    """

    proposals: Proposals
    parts: list[slice]
    downloads: list[Download]
    winners: Download | None
    unseen: frozenset[int]


class _Labeled(NamedTuple):
    """One image, labelled, without how its words came about."""

    label_map: np.ndarray
    present: tuple[PresentClass, ...]
    confidence: Confidence | None


class Finisher:
    """Turns proposals into labels.

    Args:
        config: Decides the rules.
        text: Class descriptions and names.
        policy: What becomes of the background class; kept as an attribute.
        encoder: Encodes the crops.
        normalization: Mean and standard deviation of the tower's pixels.
        window_batch: Windows whose tokens are encoded at once.
        resampling: How the head's tower resamples positions; the released code encodes crops by the same rule.
        cells: The patches that maps lie on; None for the encoder's.
    """

    def __init__(
        self,
        config: SegmenterConfig,
        text: EncodedVocabulary,
        policy: BackgroundPolicy,
        encoder: ImageEncoder,
        normalization: tuple[Sequence[float], Sequence[float]],
        window_batch: int,
        resampling: Resampling = "scale",
        cells: PatchGrid | None = None,
    ) -> None:
        self._config = config
        self._vocabulary = text.vocabulary
        self._encoder = encoder
        self._normalization = normalization
        self._resampling = resampling
        self._cells = cells or PatchGrid(encoder.patch_size)
        self._crop_batch = window_batch * CROPS_PER_WINDOW
        self._phrases = text.phrase_embeddings.to(encoder.device)
        self._phrase_class = np.append(np.asarray(text.phrase_class), NOBODY)  # nobody's phrase is the last
        self.policy = policy
        self._rule = PhraseRule(
            text.phrase_class.to(encoder.device), len(text.vocabulary), text.vocabulary.background_index
        )
        self._descriptions = text.description_embeddings.to(encoder.device)
        self._refiner = build_refiner(config.refine, config.refiner_settings)
        self._residual = text.vocabulary.background_index if policy == "residual" else None
        self._filter = self._word_filter(text, window_batch) if config.purification.in_rounds else None

    def _word_filter(self, text: EncodedVocabulary, batch: int) -> WordFilter:
        if text.prompt_embeddings is None:
            raise ConfigError(
                "--purify car reads words prompt by prompt, and this vocabulary was encoded without; encode it with the "
                "same settings (ovss_core.api.encode_words)"
            )
        vocabulary, purification = text.vocabulary, self._config.purification
        phrases = text.prompt_embeddings.to(self._encoder.device)
        return WordFilter(
            self._config.car,
            FilterWords.of(phrases, vocabulary.phrase_class, vocabulary.background_index),
            len(vocabulary),
            self._encoder,
            self._normalization,
            purification.numbers(len(vocabulary), text.logit_scale).score_scale,
            purification.box_threshold,
            batch,
        )

    def begin(self, proposals: Proposals) -> BegunLabels:
        """Launch all that labels the images of one batch; only refiners and CaR wait inside."""
        unseen: frozenset[int] = frozenset()
        if self._filter is not None and proposals.guides is not None and proposals.decisions is None:
            words = self._filter.filter(proposals.guides)
            proposals = self._filtered(proposals, words)
            unseen = frozenset(image for image, found in enumerate(words) if not found.finite)
        if proposals.decisions is None:
            return self._begin_phrases(proposals, unseen)
        return self._begin_purified(proposals, proposals.decisions, unseen)

    def wait(self, begun: BegunLabels) -> list[Segmentation | ImageError]:
        """Return the labels of the images; one whose features or scores are not finite has an error in its place."""
        proposals, decided = begun.proposals, None
        labeled = [
            found
            for part, download in zip(begun.parts, begun.downloads, strict=True)
            for found in self._present(download, proposals.sizes[part])
        ]
        if begun.winners is not None and proposals.decisions is not None:
            winners, finite = begun.winners.wait()
            regions = proposals.decisions.regions
            for image in set(regions.image[regions.has_area][~finite].tolist()):
                labeled[image] = not_finite(CROPS)
            decided = self._describe(proposals, proposals.decisions, winners)
        outcomes: list[Segmentation | ImageError] = []
        for image, (found, sound) in enumerate(zip(labeled, proposals.sound_images, strict=True)):
            if not sound:
                outcomes.append(not_finite(WINDOWS))
            elif image in begun.unseen:
                outcomes.append(not_finite(PICTURES))
            elif isinstance(found, ImageError):
                outcomes.append(found)
            else:
                kept, removed, groups = decided[image] if decided else ((), (), ())
                facts = facts_of_image(proposals.facts, image)
                outcomes.append(
                    Segmentation(
                        *(found.label_map, found.present, kept, removed, groups),
                        facts=facts,
                        confidence=found.confidence,
                    )
                )
        if proposals.region_maps is None:
            return outcomes
        return [
            outcome if isinstance(outcome, ImageError) or regions is None else self._vote(outcome, regions)
            for outcome, regions in zip(outcomes, proposals.region_maps, strict=True)
        ]

    def _filtered(self, proposals: Proposals, words: Sequence[FilteredWords]) -> Proposals:
        """Leave each image the words that CaR keeps, with the head's own scores."""
        most = max(1, *(len(found.kept) for found in words))
        classes = np.full((len(words), most), NOBODY)
        for row, found in zip(classes, words, strict=True):
            row[: len(found.kept)] = found.kept
        maps = proposals.maps.to(self._encoder.device)
        phrases, scores = scores_of_kept_words(
            classes,
            len(self._vocabulary),
            self._phrase_class[:-1],
            self._rule.background if self.policy == "first_class" else None,
            maps,
            None if proposals.scored else self._phrases,
            Units.of(proposals.window_counts, maps.device).index,
        )
        judged = np.stack([found.scores for found in words])
        threshold = np.full(len(words), self._config.car.threshold, np.float32)
        return replace(
            proposals,
            maps=scores,
            scored=True,
            phrases=phrases,
            decisions=Decisions(judged, classes, AmbiguousRegions.none()),
            facts={**proposals.facts, "threshold": threshold},
        )

    def _vote(self, result: Segmentation, regions: RegionMap) -> Segmentation:
        """Let regions vote, and count the classes anew."""
        label_map, votes = vote(result.label_map, regions, self._config.regions.min_agreement)
        pixels = np.bincount(label_map.reshape(-1), minlength=len(self._vocabulary))
        present = tuple(
            replace(entry, pixels=count, share=count / label_map.size)
            for entry in result.present
            if (count := int(pixels[entry.index]))
        )
        return replace(result, label_map=label_map, present=present, regions=votes)

    def winners(self, proposals: Proposals) -> tuple[Int[Tensor, " areas"], Bool[Tensor, " areas"]]:
        """Encode the crops of all images in full batches and pick each region's winner.

        Returns:
            For each region that has an area: the position of the winner among its group's members, and whether the
            crop's features are numbers.
        """
        device = self._encoder.device
        if proposals.decisions is None or proposals.crops is None or not len(proposals.crops):
            none = torch.zeros(0, dtype=torch.int64, device=device)
            return none, none.bool()
        regions = proposals.decisions.regions
        features = encode_crops(
            self._encoder, proposals.crops, self._normalization, self._resampling, self._crop_batch
        )
        members = regions.members[regions.group[regions.has_area]]
        candidates = upload({"members": members}, device)["members"]
        return pick_winners(features, self._descriptions, candidates), finite_rows(features)

    def _begin_phrases(self, proposals: Proposals, unseen: frozenset[int]) -> BegunLabels:
        chunks, downloads = self._chunks(proposals.sizes, len(self._phrases)), []
        for part in chunks:
            maps = proposals.maps[proposals.windows_of(part)].to(self._encoder.device)
            cosines = maps if proposals.scored else self._phrases @ maps
            stitcher = self._stitcher(proposals, part)
            tiled = stitcher.tile(cosines)
            refined = self._refined(proposals, part, tiled, stitcher, self._phrases)
            labels = label_by_probability(tiled, self._rule, stitcher, self._config.labels, refined)
            downloads.append(Download(_tables(labels)))
        return BegunLabels(proposals.without_maps(), chunks, downloads, None, unseen)

    def _begin_purified(
        self, proposals: Proposals, decisions: Decisions, unseen: frozenset[int]
    ) -> BegunLabels:
        device = self._encoder.device
        own = proposals.phrases
        named = decisions.classes if own is None else self._phrase_class[own]
        tables = {"named": named} | ({} if own is None else {"phrases": own.clip(0)})
        on_device = upload(tables, device)
        classes, config = on_device["named"], self._config.labels
        winners, finite = self.winners(proposals)
        decided = Download([winners, finite])
        kept = ClassMaps(Units.of(proposals.window_counts, device), classes, proposals.maps.to(device))
        edits = None
        purification = self._config.purification
        if purification.by_image or purification.in_rounds:
            edits = LabelEdits.of_regions(decisions.regions, winners, named, proposals.scales)
        else:
            kept = self._without_losers(
                kept, decisions, self._cells.of(proposals.layouts[0].window_size), winners
            )
        chunks, downloads = self._chunks(proposals.sizes, kept.places), []
        for part in chunks:
            stitcher = self._stitcher(proposals, part)
            tiled = stitcher.tile(kept.maps[proposals.windows_of(part)])
            mine = edits.of_images(part) if edits else None
            count = int((named[part.start] != NOBODY).sum())
            if own is None:
                vectors = self._descriptions[classes[part.start, :count]]
                refined = self._refined(proposals, part, tiled[:, :count], stitcher, vectors)
                labels = label_by_purified_maps(
                    tiled,
                    classes[part],
                    len(self._vocabulary),
                    self._residual,
                    stitcher,
                    mine,
                    config,
                    refined,
                )
            else:
                vectors = self._phrases[on_device["phrases"][part.start, :count]]
                refined = self._refined(proposals, part, tiled[:, :count], stitcher, vectors)
                rule = self._rule.of_images(classes[part] if refined is None else classes[part, :count])
                labels = label_by_probability(tiled, rule, stitcher, config, refined, mine)
            downloads.append(Download(_tables(labels)))
        return BegunLabels(proposals.without_maps(), chunks, downloads, decided, unseen)

    def _chunks(self, sizes: Sequence[tuple[int, int]], maps: int) -> list[slice]:
        """Split a batch into what is labelled at once; refined images go one by one."""
        if self._refiner is not None:
            return [slice(place, place + 1) for place in range(len(sizes))]
        device = self._encoder.device
        return chunk_by_area(sizes, held_maps(maps, device), budget(device))

    def _refined(
        self, proposals: Proposals, part: slice, tiled: Tensor, stitcher: Stitcher, vectors: Tensor
    ) -> RefinedScores | None:
        """Return the refined scores of one image; None without a refiner, or for an image that keeps nothing."""
        if self._refiner is None or proposals.guides is None or not len(vectors):
            return None
        picture = proposals.guides[part.start].to(self._encoder.device)
        guide = Guide(normalize(picture, *self._normalization), stitcher.size)
        return RefinedScores(self._refiner, ScoreMaps(tiled[0], stitcher, vectors), guide)

    def _without_losers(
        self, kept: ClassMaps, decisions: Decisions, grid: tuple[int, int], winners: Tensor
    ) -> ClassMaps:
        released = self._config.purification.variant == "released"
        size = self._cells.patch_size
        return remove_losers(kept, decisions.regions, winners, decisions.classes, size, grid, released)

    def _stitcher(self, proposals: Proposals, part: slice) -> Stitcher:
        grid = self._cells.of(proposals.layouts[0].window_size)
        return Stitcher(proposals.layouts[part], grid, proposals.sizes[part], self._encoder.device)

    def _present(self, download: Download, sizes: Sequence[tuple[int, int]]) -> list[_Labeled | ImageError]:
        """Await label maps and counts, and list the classes of each image."""
        maps, pixels, sums, *margins = download.views()  # what is kept of them is copied
        names, dtype = self._vocabulary.names, self._vocabulary.mask_dtype
        found: list[_Labeled | ImageError] = []
        for image, (height, width) in enumerate(sizes):
            if not np.isfinite(sums[image]).all():
                found.append(not_finite(SCORES))
                continue
            present = tuple(
                PresentClass(
                    index=int(index),
                    name=names[index],
                    pixels=int(pixels[image, index]),
                    share=float(pixels[image, index] / (height * width)),
                    confidence=float(sums[image, index] / pixels[image, index]),
                )
                for index in np.flatnonzero(pixels[image])
            )
            label_map = maps[image, :height, :width].astype(dtype)
            labelled = int(pixels[image].sum())
            found.append(_Labeled(label_map, present, _confidence(margins, image, label_map.shape, labelled)))
        return found

    def _describe(
        self, proposals: Proposals, decisions: Decisions, winners: Int[np.ndarray, " areas"]
    ) -> list[_Decided]:
        """List kept and removed classes, and the groups with boxes in pixels of each image."""
        regions = decisions.regions
        owner = np.full(len(regions), NOBODY)
        owner[regions.has_area] = regions.members[regions.group[regions.has_area], winners]
        corners = regions.on_image([layout.origins for layout in proposals.layouts])
        boxes = scale_boxes(corners, np.array(proposals.scales)[regions.image]).tolist()
        taken = [None if winner == NOBODY else winner for winner in owner.tolist()]
        decided: list[list[BoxDecision]] = [[] for _ in regions.members]
        for group, (x0, y0, x1, y1), winner in zip(regions.group.tolist(), boxes, taken, strict=True):
            decided[group].append(BoxDecision(int(x0), int(y0), int(x1), int(y1), winner))
        groups: list[list[AmbiguityGroup]] = [[] for _ in proposals.sizes]
        for image, members, places in zip(
            regions.group_image.tolist(), regions.members.tolist(), decided, strict=True
        ):
            classes = tuple(index for index in members if index != NOBODY)
            groups[image].append(AmbiguityGroup(classes, tuple(places)))
        kept = kept_table(decisions.classes, len(self._vocabulary))
        removed = ~kept & ~np.isnan(decisions.scores)
        return [
            (self._scored(kept[image], scores), self._scored(removed[image], scores), tuple(found))
            for image, (scores, found) in enumerate(zip(decisions.scores, groups, strict=True))
        ]

    def _scored(
        self, listed: Bool[np.ndarray, " classes"], scores: Float[np.ndarray, " classes"]
    ) -> ScoredClasses:
        return ScoredClasses(self._vocabulary.names, np.flatnonzero(listed), scores[listed])


def _tables(labels: Labels) -> list[Tensor]:
    """List what the CPU needs of labels, in the order in which `Finisher._present` takes it."""
    margins = [] if labels.margins is None else labels.margins.tensors()
    return [labels.label_maps, labels.pixels, labels.confidence_sums, *margins]


def _confidence(
    margins: Sequence[np.ndarray], image: int, size: tuple[int, ...], labelled: int
) -> Confidence | None:
    """Average the tables of `Margins` over one image's pixels; None where there are none."""
    if not margins:
        return None
    (height, width), (scores, sums, sure, *pictures) = size, margins
    pixels = height * width
    return Confidence(
        float(scores[image] / pixels),
        float(sums[image] / pixels),
        float(sure[image] / pixels),
        1 - labelled / pixels,
        pictures[0][image, :height, :width].copy() if pictures else None,
    )
