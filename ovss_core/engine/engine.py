"""The labelling engine: images to proposals (stage 1), proposals to labels (stage 2). It knows no Ray.

The way of an image: `prepare` resizes it; images whose windows have one size are put together in waves (`gather`, see
`waves`); `encode` runs the tower and the dense heads over all windows of a wave; `propose_encoded` scores the vocabulary
and purifies it, and cuts out the regions that several words claim; `begin` shows those to the plain encoder, and labels
every pixel. Everything after `gather` works on whole waves. What is begun on a device is awaited later (`pending`).
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.check import background_policy, require_class_token
from ovss_core.class_purification.class_maps import WindowBatch
from ovss_core.class_purification.groups import list_regions
from ovss_core.class_purification.placement import Placement
from ovss_core.class_purification.purifier import ClassPurifier, Purified
from ovss_core.class_purification.room import Room
from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.timm_tower import open_tower
from ovss_core.clip.trace import EncoderTrace, TraceRequest, WindowRegions
from ovss_core.clip.weights import ClipModel
from ovss_core.config import SegmenterConfig
from ovss_core.dense_heads.proxy_attention import resample_grid
from ovss_core.dense_heads.scoring import (
    PhraseTables,
    Words,
    as_scorer,
    join_evidence,
)
from ovss_core.engine.agreement import best_classes, disagreement, lattice
from ovss_core.engine.crops import cut_whole_images, encode_crops
from ovss_core.engine.facts import facts_of_wave
from ovss_core.engine.finish import Finisher
from ovss_core.engine.finite import finite_rows, raise_first, sound_windows
from ovss_core.engine.heads import build_heads, request_together
from ovss_core.engine.kept_words import scores_of_kept_words
from ovss_core.engine.pending import PendingLabels, PendingProposals, decided_tables
from ovss_core.engine.proposal import MAP_LEVELS, Decisions, Proposals, size_in
from ovss_core.engine.waves import Encoded, PreparedImage, Wave, plan_waves
from ovss_core.engine.word_scores import WordScorer
from ovss_core.errors import ConfigError, ImageError
from ovss_core.images.pixels import ImagePixels
from ovss_core.images.resize import normalize, resize_bilinear, resize_image
from ovss_core.images.windows import PatchGrid, WindowLayout
from ovss_core.proxies.loading import ProxyModel, load_proxy
from ovss_core.proxies.tower import ProxyTower
from ovss_core.regions import RegionMap
from ovss_core.regions.region_map import count_in_windows
from ovss_core.results import Segmentation
from ovss_core.transfer import Download, await_later, upload

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WAVE_BATCHES, WAVE_WINDOWS = 4, 512
"""Batches of a wave, and windows that it does not exceed unless one batch does."""
WINDOW_BATCH, WINDOW_BATCH_PURIFIED, WINDOW_BATCH_CPU = 128, 256, 8
"""Windows of a batch. Where FreeCP follows, a GPU is given twice as many: measured on an H200, 128 were faster without it
alone."""


class SegmentationEngine:
    """Holds CLIP's image tower and the encoded vocabulary, and labels images in batches.

    Args:
        config: Decides what every image gets.
        clip: The model; only its image tower is kept.
        text: The encoded vocabulary.
        device: Where to compute.
        proxy: The second tower, where the head needs one; None loads the one that `config` names.

    Raises:
        ModelError: The image tower is no plain ViT.
        ConfigError: A head is unknown, heads cannot be read together, or the settings do not fit the vocabulary.

    Attributes:
        encoder: The image tower.
        request: What the heads, and purification, want kept of blocks 1 to L-1.
        heads: The dense heads; several share the tower, and the mean of their scores counts.
        scoring_head: The head, where it sees the words; None where cosines with its features are the scores.
        scorer: Scores the words at patches.
        purifier: FreeCP; None without it.
        finisher: Stage 2.
        must_keep: Whether an image must keep a class, since no residual background can take its pixels.
        timings: Seconds spent by stage since the last `take_timings`.
        room: How much a wave may keep: fixed on a GPU, which must not wait; None, whatever it takes, on a CPU.
        cells: The patches that features and maps lie on: CLIP's, or those of a head's second tower.
    """

    def __init__(
        self,
        config: SegmenterConfig,
        clip: ClipModel,
        text: EncodedVocabulary,
        device: str | torch.device = "cpu",
        proxy: ProxyModel | None = None,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.encoder = open_tower(clip.model.visual.to(self.device, DTYPES[config.model.precision]))
        require_class_token(config, self.encoder.prefix > 0)
        self.normalization = clip.image_mean, clip.image_std
        self.heads = build_heads(config)
        request = request_together(self.heads, self.encoder.depth)
        self.scoring_head = as_scorer(self.heads[0])
        self.request = request.with_mean_attention() if config.purification.active else request
        self.proxy: ProxyTower | None = None
        if request.proxy:
            model = proxy or load_proxy(config.proxy)
            self.proxy = model.tower(self.device, DTYPES[config.model.precision])
        self.cells = self.proxy.cells if self.proxy else PatchGrid(self.encoder.patch_size)
        if config.windows.size < self._least_side:
            raise ConfigError(
                f"windows of {config.windows.size} pixels are smaller than the model's patches of "
                f"{self._least_side}; give a larger windows.size"
            )
        self.timings: dict[str, float] = defaultdict(float)
        self._take_up(text)

    def _take_up(self, text: EncodedVocabulary) -> None:
        """Take up a vocabulary."""
        config, self.text = self.config, text
        policy = background_policy(config, text.vocabulary)
        active = config.purification.active
        self.purifier = ClassPurifier(config.purification, text, policy, self.device) if active else None
        self.finisher = Finisher(
            *(config, text, policy, self.encoder, self.normalization, self.window_batch),
            self.request.resampling,
            self.cells,
        )
        background = text.vocabulary.background_index
        self._phrase_class = text.phrase_class.to(self.device)
        words = Words(
            text.phrase_embeddings.to(self.device),
            self._phrase_class == (-1 if background is None else background),
            text.null_embeddings.to(self.device)[: None if config.purification.needs_distractors else 0],
        )
        scale = config.purification.numbers(len(text.vocabulary), text.logit_scale).score_scale
        self.scorer = WordScorer(
            words, self.scoring_head, self.encoder, config.class_prior, scale, self.window_batch
        )
        self.must_keep = policy != "residual"
        self.room = None if self.device.type == "cpu" else Room()

    def with_vocabulary(self, text: EncodedVocabulary, config: SegmenterConfig) -> "SegmentationEngine":
        """Return an engine on the same image tower and head for another vocabulary.

        Args:
            config: May differ in purification and labels; what the head and the tower are asked for must stay.

        Raises:
            ConfigError: The head would compute something else, so that an engine of its own is needed.
        """
        if config.tower_part != self.config.tower_part:
            raise ConfigError(
                "another vocabulary on the same tower may change thresholds and label rules, but neither model, head, "
                "windows nor whether purification runs; build an engine of its own"
            )
        other = copy(self)
        other.config, other.timings = config, defaultdict(float)
        other._take_up(text)
        return other

    @property
    def window_batch(self) -> int:
        """Windows encoded at once."""
        if self.config.window_batch:
            return self.config.window_batch
        if self.device.type == "cpu":
            return WINDOW_BATCH_CPU
        return WINDOW_BATCH_PURIFIED if self.config.purification.active else WINDOW_BATCH

    def learn(self, *needed: int) -> None:
        """Fit the room of later waves to what one needed; see `Room.learned`."""
        if self.room is not None:
            self.room = self.room.learned(*needed)

    def take_timings(self) -> dict[str, float]:
        """Return the seconds by stage, and start counting anew."""
        taken, self.timings = dict(self.timings), defaultdict(float)
        return taken

    def segment(
        self, images: Sequence[np.ndarray | PreparedImage], regions: Sequence[RegionMap | None] | None = None
    ) -> list[Segmentation]:
        """Label images, uint8 RGB [height, width, 3] of any sizes: both stages, one after the other.

        Args:
            images: The images.
            regions: Their region maps, used as `config.regions` says; None for images without.

        Raises:
            ImageError: The features or scores of an image are not finite; `segment_each` labels the others all the same.
                Or a region map has another size than its image.
        """
        if regions is not None:
            images = [
                self.prepare(image, own) if isinstance(image, np.ndarray) else image
                for image, own in zip(images, regions, strict=True)
            ]
        return raise_first(self.segment_each(images))

    def segment_each(self, images: Sequence[np.ndarray | PreparedImage]) -> list[Segmentation | ImageError]:
        """Do as `segment`; an image whose features or scores are not finite has the error in its place."""
        results: dict[int, Segmentation | ImageError] = {}
        for wave, labelled in self.label_all(self.gather(images)):
            results.update(zip(wave.places, labelled, strict=True))
        return [results[place] for place in range(len(images))]

    def propose_all(self, waves: Iterable[Wave]) -> Iterator[tuple[Wave, Proposals]]:
        """Run stage 1 on wave after wave; the CPU awaits one while the device works on the next."""
        return await_later(((wave, self.propose(wave)) for wave in waves), self.device)

    def label_all(self, waves: Iterable[Wave]) -> Iterator[tuple[Wave, list[Segmentation | ImageError]]]:
        """Run both stages on wave after wave.

        When the labels of a wave are awaited, the device has stage 2 of the next wave and stage 1 of the one after it.
        """
        proposed = self.propose_all(waves)
        return await_later(((wave, self.begin(proposals)) for wave, proposals in proposed), self.device)

    def prepare(self, image: np.ndarray, regions: RegionMap | None = None) -> PreparedImage:
        """Resize a decoded image (uint8 RGB [height, width, 3]) for windows; safe to call from threads.

        Raises:
            ImageError: The region map has another size than the image.
        """
        windows = self.config.windows
        pixels = resize_image(image, windows.short_side, windows.long_side, self._least_side)
        fine = None
        if self.proxy and self.proxy.scale > 1:
            height, width = pixels.shape[:2]
            fine = resize_bilinear(image, (height * self.proxy.scale, width * self.proxy.scale))
        size = image.shape[0], image.shape[1]
        return PreparedImage(size, pixels, fine, regions and regions.require_size(size))

    @property
    def _least_side(self) -> int:
        """The side, in pixels, that fills a patch of every tower."""
        return max(self.encoder.patch_size, self.cells.patch_size)

    def gather(self, images: Sequence[np.ndarray | PreparedImage]) -> Iterator[Wave]:
        """Cut the windows of images, and yield them in waves of one window size and a bounded number of windows."""
        with self._timed("resize"):
            prepared = [
                image if isinstance(image, PreparedImage) else self.prepare(image) for image in images
            ]
        layouts = [WindowLayout.of_image(image.pixels, self.config.windows) for image in prepared]
        for places in plan_waves(layouts, self._wave_windows):
            chosen = tuple(layouts[place] for place in places)
            with self._timed("windows"):
                resized = [prepared[place].pixels for place in places]
                pixels, placement = ImagePixels.of(resized, chosen, self.device), self.place(chosen)
            sizes = tuple(prepared[place].size for place in places)
            fine = self._fine_pixels([prepared[place] for place in places], chosen)
            maps = tuple(prepared[place].regions for place in places)
            yield Wave(
                *(tuple(places), sizes, chosen, pixels, placement, fine),
                maps if any(regions is not None for regions in maps) else None,
                self._window_regions(maps, chosen),
            )

    def _window_regions(
        self, maps: Sequence[RegionMap | None], layouts: Sequence[WindowLayout]
    ) -> WindowRegions | None:
        """Lay the region maps of images on their windows, where patches see inside regions only."""
        if not self.config.regions.scope or all(regions is None for regions in maps):
            return None
        rows, columns = self.cells.of(layouts[0].window_size)
        tables = [
            np.zeros((len(layout), rows * columns), np.int32)
            if regions is None
            else regions.on_patches(layout, self.cells)
            for regions, layout in zip(maps, layouts, strict=True)
        ]
        ids, count = count_in_windows(tables)
        return WindowRegions(upload({"ids": ids}, self.device)["ids"], count)

    @property
    def _wave_windows(self) -> int:
        """Windows of a wave: fewer where the maps that purification spreads by are larger than CLIP's own."""
        share = (self.cells.patch_size / self.encoder.patch_size) ** 4 if self.request.mean_attention else 1.0
        windows = min(self.window_batch * WAVE_BATCHES, max(WAVE_WINDOWS, self.window_batch))
        return max(1, int(windows * min(1.0, share)))

    def _fine_pixels(
        self, prepared: Sequence[PreparedImage], layouts: Sequence[WindowLayout]
    ) -> ImagePixels | None:
        if self.proxy is None or self.proxy.scale == 1:
            return None
        scaled = [layout.scaled(self.proxy.scale) for layout in layouts]
        fine = [image.proxy_pixels for image in prepared if image.proxy_pixels is not None]
        return ImagePixels.of(fine, scaled, self.device)

    def place(self, layouts: Sequence[WindowLayout]) -> Placement:
        """Put the layouts of images, whose windows have one size, into the purifier's form."""
        size = layouts[0].window_size
        return Placement.of(
            [len(layout) for layout in layouts],
            [origin for layout in layouts for origin in layout.origins],
            [layout.image_size for layout in layouts],
            self.cells.of(size),
            self.cells.patch_size,
            size,
            self.device,
        )

    def propose(self, wave: Wave) -> PendingProposals:
        """Encode all windows of a wave, score the vocabulary and purify it (stage 1); nothing is waited for."""
        return self.propose_encoded(wave, self.encode(wave), self.room)

    @torch.inference_mode()
    def encode(self, wave: Wave) -> Encoded:
        """Run the tower and the dense heads over the windows, in full batches."""
        features: list[list[Tensor]] = [[] for _ in self.heads]
        attention, evidence = [], []
        for part in wave.parts(self.window_batch):
            trace, pixels = self.trace(wave, part, self.request)
            with self._timed("dense_head"), self._products_as_exact_as_the_tower():
                for head, found in zip(self.heads, features, strict=True):
                    found.append(F.normalize(head.features(self.encoder, trace).float(), dim=-1))
                if self.scoring_head:
                    evidence.append(self.scoring_head.evidence(self.encoder, trace, pixels))
            if trace.mean_attention is not None:
                attention.append(self.resample_attention(trace.mean_attention, trace.grid, wave))
        return Encoded.of(
            [torch.cat(found) for found in features],
            torch.cat(attention) if attention else None,
            join_evidence(evidence),
            self.encode_whole(wave) if self.config.class_prior else None,
        )

    def encode_whole(self, wave: Wave) -> Float[Tensor, "images channels"]:
        """Return unit features of the wave's images as a whole, each squeezed into one window, by the plain encoder."""
        with self._timed("crops"):
            crops = cut_whole_images(wave.pixels, wave.placement, self.config.windows.size)
            return encode_crops(
                self.encoder, crops, self.normalization, self.request.resampling, self.window_batch
            )

    def trace(
        self, wave: Wave, part: slice, request: TraceRequest
    ) -> tuple[EncoderTrace, Float[Tensor, "windows 3 height width"]]:
        """Run both towers over some windows of a wave; returns their pixels as well, normalized."""
        with self._timed("windows"):
            pixels = wave.pixels.cut_normalized(part, *self.normalization, self.encoder.dtype)
        with self._timed("encoder"):
            trace = self.encoder.trace(pixels, request)
        if wave.regions is not None:
            trace.regions = WindowRegions(wave.regions.ids[part], wave.regions.count)
        if self.proxy and request.proxy:
            with self._timed("proxy"):
                seen = (wave.proxy_pixels or wave.pixels).cut_windows(part)
                trace.proxy = self.proxy.features(normalize(seen, *self.proxy.normalization), request.proxy)
        return trace, pixels

    def resample_attention(self, attention: Tensor, grid: tuple[int, int], wave: Wave) -> Tensor:
        """Bring CLIP's mean attention to the grid that the features lie on, rows and columns bilinearly."""
        wanted = self.cells.of(wave.pixels.window_size)
        rows = resample_grid(attention, grid, wanted)
        spread: Tensor = resample_grid(rows.mT, grid, wanted).mT
        return spread

    @torch.inference_mode()
    def propose_encoded(self, wave: Wave, encoded: Encoded, room: Room | None = None) -> PendingProposals:
        """Score and purify the vocabulary on windows that are encoded already.

        Args:
            wave: The windows.
            encoded: What the tower made of them.
            room: How much may be kept, so that nothing has to be counted; None counts.
        """
        # An image of which something is no number fails in the end; until then it must do no harm.
        sound = self._sound(wave, encoded)
        image_sound = wave.placement.images.reduce(sound.int(), "amin") > 0
        # The head's own scores: what labels come from without purification, and in its form "filter".
        tables = self.scorer.tables(wave, encoded)
        maps, scored = None, True
        if self.config.purification.own_scores:
            with self._timed("scores"):
                maps, scored = self.scorer.maps(wave, encoded, tables)
        # FreeCP: which words are there, and the regions that several of them claim, as pictures for the plain encoder.
        purified = crops = None
        decided: list[Tensor] = []
        if self.purifier is not None and encoded.attention is not None:
            with self._timed("purification"), self._products_as_exact_as_the_tower():
                purified = self._purify(self.purifier, wave, encoded, encoded.attention, sound, tables, room)
            with self._timed("crops"):
                most = room.regions * len(wave.sizes) if room else None
                regions = list_regions(purified.groups, wave.placement, most)
                side = self.config.purification.crop_size
                crops = wave.pixels.cut_regions(regions.image, regions.corners, side)
            decided = decided_tables(purified, regions)
            if maps is None:
                maps = (purified.kept.maps.float() * MAP_LEVELS).round_().div_(MAP_LEVELS)
        assert maps is not None, "without purification labels come from the head's own scores"
        proposals = Proposals(
            wave.sizes,
            wave.layouts,
            maps,
            scored,
            crops=crops,
            guides=self._guides(wave),
            region_maps=self._voting(wave),
        )
        # Maps and crops stay on the device; the numbers that the CPU goes on with come in one copy, which is awaited later.
        facts = facts_of_wave(wave, self._compared(wave, encoded, purified), purified)
        download = Download([image_sound, *facts.values(), *decided])
        by_window = purified is not None and purified.groups.by_window
        return PendingProposals(self, wave, encoded, proposals, download, tuple(facts), by_window)

    def _sound(self, wave: Wave, encoded: Encoded) -> Bool[Tensor, " windows"]:
        """Say of each window whether all that was made of it, and of its image as a whole, are numbers."""
        sound = sound_windows(encoded.features, encoded.attention)
        if encoded.whole is not None:
            sound &= finite_rows(encoded.whole)[wave.placement.images.index]
        return sound

    def _purify(
        self,
        purifier: ClassPurifier,
        wave: Wave,
        encoded: Encoded,
        attention: Float[Tensor, "windows patches patches"],
        sound: Bool[Tensor, " windows"],
        tables: PhraseTables | None,
        room: Room | None,
    ) -> Purified:
        # what is no number must not reach the sums that images of a batch share a table for
        unsound = ~sound[:, None, None]
        features, attention = (
            table.masked_fill(unsound, 0)
            for table in (self.scorer.mixed(wave, encoded, encoded.features), attention)
        )
        logits = self.scorer.logits(wave, encoded, sound, tables)
        return purifier.purify(WindowBatch(features, attention, wave.placement, logits), room)

    def _compared(self, wave: Wave, encoded: Encoded, purified: Purified | None) -> Encoded:
        """Find out on how much of each image several heads disagree about the words that are left."""
        if not encoded.of_heads:
            return encoded
        with self._timed("agreement"):
            allowed = self._allowed(purified, len(wave.sizes))
            points = lattice(wave.layouts, wave.placement.grid, self.cells.patch_size, self.device)
            best = [
                best_classes(
                    self.scorer.mixed(wave, encoded, features),
                    points,
                    self.scorer.words.phrases,
                    self._phrase_class,
                    allowed,
                )
                for features in encoded.of_heads
            ]
            foreground = None
            if purified is not None and self.finisher.policy == "residual":
                # elsewhere the background wins, 1 - max of the maps, whatever the heads prefer
                maps = F.pad(purified.kept.maps.float(), (0, 0, 0, 1))  # one map at least
                foreground = points.stitch(points.tile(maps)).amax(1) > 0.5
            return replace(encoded, disagreement=disagreement(best, points, foreground))

    def _allowed(self, purified: Purified | None, images: int) -> Bool[Tensor, "images phrases"] | None:
        """Say which phrases may win in each image; None where all may."""
        if purified is not None:
            kept = purified.kept
            # what is nobody's lies in the last column
            table = kept.used.new_zeros(len(kept.classes), len(self.text.vocabulary) + 1)
            column = torch.where(kept.used, kept.classes, len(self.text.vocabulary))
            return table.scatter_(1, column, True)[:, self._phrase_class]
        if self.finisher.policy == "none" and self.text.vocabulary.background_index is not None:
            return (~self.scorer.words.background).expand(images, -1)
        return None

    def _guides(self, wave: Wave) -> tuple[Tensor, ...] | None:
        """Return the resized images, which a refiner fits the scores to or CaR sees; None where neither follows."""
        if self.config.refine == "none" and not self.config.purification.in_rounds:
            return None
        return tuple(wave.pixels.image(place, layout.image_size) for place, layout in enumerate(wave.layouts))

    def _voting(self, wave: Wave) -> tuple[RegionMap | None, ...] | None:
        """Return the region maps that vote in the end."""
        return wave.region_maps if self.config.regions.vote else None

    def proposals_of_rows(self, rows: Sequence[Mapping[str, Any]]) -> Proposals:
        """Put rows of `Proposals.to_rows` together, which other processes may have made.

        Args:
            rows: Of images whose windows have one size.
        """
        config = self.config
        layout = WindowLayout.of(*size_in(rows[0], "resized"), config.windows)
        rows_of_patches, columns = self.cells.of(layout.window_size)
        patches = rows_of_patches * columns
        return Proposals.from_rows(rows, config.windows, patches, config.purification.crop_size)

    @torch.inference_mode()
    def of_kept_words(
        self, wave: Wave, decisions: Decisions, proposals: Proposals
    ) -> tuple[Int[np.ndarray, "images places"], Float[Tensor, "windows places patches"]]:
        """Take out of all scores those of the words that each image keeps; a background that competes is among them.

        Returns:
            The phrase of each place, `NOBODY` behind an image's last, and its scores; anything in unused places.
        """
        competes = self.finisher.policy == "first_class"
        return scores_of_kept_words(
            decisions.classes,
            len(self.text.vocabulary),
            np.asarray(self.text.phrase_class),
            self.text.vocabulary.background_index if competes else None,
            proposals.maps,
            None if proposals.scored else self.scorer.words.phrases,
            wave.placement.images.index,
        )

    def finish(self, proposals: Proposals) -> list[Segmentation | ImageError]:
        """Encode the crops, pick winners and assign labels at the images' sizes (stage 2).

        An image whose features or scores are not finite has the error in its place.
        """
        return self.begin(proposals).wait()

    @torch.inference_mode()
    def begin(self, proposals: Proposals) -> PendingLabels:
        """Give the device all of stage 2; the labels are not waited for."""
        with self._timed("finish"), self._products_as_exact_as_the_tower():
            return PendingLabels(self, self.finisher.begin(proposals))

    @contextmanager
    def _products_as_exact_as_the_tower(self) -> Iterator[None]:
        """Let a GPU multiply float32 numbers as TF32 where the tower has computed in fewer digits than that."""
        if self.device.type != "cuda" or self.encoder.dtype == torch.float32:
            yield
            return
        settings = torch.backends.cuda.matmul
        before, settings.allow_tf32 = settings.allow_tf32, True
        try:
            yield
        finally:
            settings.allow_tf32 = before

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] += time.perf_counter() - start
