"""The labelling engine: images to proposals (stage 1), proposals to labels (stage 2). It knows no Ray.

The way of an image: `prepare` resizes it; images whose windows have one size are put together in waves (`gather`);
`encode` runs the tower and the dense head over all windows of a wave; `propose_encoded` scores the vocabulary and
purifies it, and cuts out the regions that several words claim; `finish` shows those to the plain encoder, and labels
every pixel. Everything after `gather` works on whole waves.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.check import background_policy
from ovss_core.class_purification.class_maps import NOBODY, Room, WindowBatch
from ovss_core.class_purification.groups import list_regions
from ovss_core.class_purification.placement import Placement
from ovss_core.class_purification.purifier import ClassPurifier
from ovss_core.class_purification.winners import Regions
from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.weights import ClipModel, load_clip
from ovss_core.config import SegmenterConfig
from ovss_core.dense_heads import HeadOptions, build_head
from ovss_core.engine.finish import Finisher
from ovss_core.engine.finite import finite_rows, raise_first
from ovss_core.engine.proposal import MAP_LEVELS, Decisions, Proposals, size_in
from ovss_core.errors import ConfigError, ImageError
from ovss_core.images.pixels import ImagePixels
from ovss_core.images.resize import normalize, resize_image
from ovss_core.images.windows import WindowLayout
from ovss_core.results import Segmentation
from ovss_core.transfer import Download

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WAVE_BATCHES = 4
WINDOW_BATCH, WINDOW_BATCH_CPU = 128, 8


@dataclass(frozen=True)
class PreparedImage:
    """A decoded image, resized for windows.

    Attributes:
        size: Height and width of the image.
        pixels: The resized image, uint8 RGB [height, width, 3].
    """

    size: tuple[int, int]
    pixels: np.ndarray


@dataclass(frozen=True)
class Wave:
    """Images whose windows all have one size, cut.

    Attributes:
        places: Their positions in the call.
        sizes: Height and width of each image.
        layouts: Where its windows lie.
        pixels: The images on the device, out of which windows and regions are cut.
        placement: Where the windows lie, for purification.
    """

    places: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    layouts: tuple[WindowLayout, ...]
    pixels: ImagePixels
    placement: Placement

    def parts(self, size: int) -> list[slice]:
        """Split the windows into batches of at most `size`."""
        return [slice(first, first + size) for first in range(0, len(self.pixels), size)]


@dataclass(frozen=True)
class Encoded:
    """What the tower and the dense head make of the windows of a wave.

    Attributes:
        features: Unit features.
        attention: Mean attention over blocks and heads, where purification follows.
    """

    features: Float[Tensor, "windows patches channels"]
    attention: Float[Tensor, "windows patches patches"] | None


class SegmentationEngine:
    """Holds CLIP's image tower and the encoded vocabulary, and labels images in batches.

    Args:
        config: Decides what every image gets.
        clip: The model; only its image tower is kept.
        text: The encoded vocabulary.
        device: Where to compute.

    Raises:
        ModelError: The image tower is no plain ViT.
        ConfigError: The head is unknown, or the settings do not fit the vocabulary.

    Attributes:
        timings: Seconds spent by stage since the last `take_timings`.
        room: How much a wave may keep: fixed on a GPU, which must not wait; None, whatever it takes, on a CPU.
    """

    def __init__(
        self,
        config: SegmenterConfig,
        clip: ClipModel,
        text: EncodedVocabulary,
        device: str | torch.device = "cpu",
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.encoder = ImageEncoder(clip.model.visual.to(self.device, DTYPES[config.model.precision]))
        self.normalization = clip.image_mean, clip.image_std
        self.head = build_head(config.host, HeadOptions(config.purification.active, config.head_settings))
        request = self.head.request(self.encoder.depth)
        self.request = request.with_mean_attention() if config.purification.active else request
        if config.windows.size < self.encoder.patch_size:
            raise ConfigError(
                f"windows of {config.windows.size} pixels are smaller than the model's patches of "
                f"{self.encoder.patch_size}; give a larger windows.size"
            )
        self.timings: dict[str, float] = defaultdict(float)
        self._offer(text)

    def _offer(self, text: EncodedVocabulary) -> None:
        """Take up a vocabulary."""
        config, self.text = self.config, text
        policy = background_policy(config, text.vocabulary)
        active = config.purification.active
        self.purifier = ClassPurifier(config.purification, text, policy, self.device) if active else None
        self.finisher = Finisher(
            config, text, policy, self.encoder, self.normalization, self.window_batch, self.request.resampling
        )
        self._phrases = text.phrase_embeddings.to(self.device)
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
        other._offer(text)
        return other

    @classmethod
    def build(
        cls, config: SegmenterConfig, text: EncodedVocabulary, device: str | torch.device = "cpu"
    ) -> "SegmentationEngine":
        """Load the model that `config` names and build the engine."""
        return cls(config, load_clip(config.model), text, device)

    @property
    def window_batch(self) -> int:
        """Windows encoded at once."""
        return self.config.window_batch or (WINDOW_BATCH_CPU if self.device.type == "cpu" else WINDOW_BATCH)

    def learn(self, active: int, distractors: int) -> None:
        """Fit the room of later waves to what one needed."""
        if self.room is not None:
            self.room = self.room.learned(active, distractors)

    def take_timings(self) -> dict[str, float]:
        """Return the seconds by stage, and start counting anew."""
        taken, self.timings = dict(self.timings), defaultdict(float)
        return taken

    def segment(self, images: Sequence[np.ndarray | PreparedImage]) -> list[Segmentation]:
        """Label images, uint8 RGB [height, width, 3] of any sizes: both stages, one after the other.

        Raises:
            ImageError: The features or scores of an image are not finite; `segment_each` labels the others all the same.
        """
        return raise_first(self.segment_each(images))

    def segment_each(self, images: Sequence[np.ndarray | PreparedImage]) -> list[Segmentation | ImageError]:
        """Do as `segment`; an image whose features or scores are not finite has the error in its place."""
        results: dict[int, Segmentation | ImageError] = {}
        for wave, proposals in self.propose_all(self.gather(images)):
            results.update(zip(wave.places, self.finish(proposals), strict=True))
        return [results[place] for place in range(len(images))]

    def propose_all(self, waves: Iterable[Wave]) -> Iterator[tuple[Wave, Proposals]]:
        """Run stage 1 on wave after wave; the CPU awaits one while the device works on the next."""
        before: tuple[Wave, PendingProposals] | None = None
        for wave in waves:
            queued = wave, self.propose(wave)
            if before:
                yield before[0], before[1].wait()
            before = queued
        if before:
            yield before[0], before[1].wait()

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Resize a decoded image (uint8 RGB [height, width, 3]) for windows; safe to call from threads."""
        windows = self.config.windows
        pixels = resize_image(image, windows.short_side, windows.long_side, self.encoder.patch_size)
        return PreparedImage((image.shape[0], image.shape[1]), pixels)

    def gather(self, images: Sequence[np.ndarray | PreparedImage]) -> Iterator[Wave]:
        """Cut the windows of images, and yield them in waves of one window size and a bounded number of windows."""
        with self._timed("resize"):
            prepared = [
                image if isinstance(image, PreparedImage) else self.prepare(image) for image in images
            ]
        layouts = [WindowLayout.of_image(image.pixels, self.config.windows) for image in prepared]
        for places in plan_waves(layouts, self.window_batch * WAVE_BATCHES):
            chosen = tuple(layouts[place] for place in places)
            with self._timed("windows"):
                resized = [prepared[place].pixels for place in places]
                pixels, placement = ImagePixels.of(resized, chosen, self.device), self.place(chosen)
            sizes = tuple(prepared[place].size for place in places)
            yield Wave(tuple(places), sizes, chosen, pixels, placement)

    def place(self, layouts: Sequence[WindowLayout]) -> Placement:
        """Put the layouts of images, whose windows have one size, into the purifier's form."""
        size = layouts[0].window_size
        return Placement.of(
            [len(layout) for layout in layouts],
            [origin for layout in layouts for origin in layout.origins],
            [layout.image_size for layout in layouts],
            self.encoder.grid_of(size),
            self.encoder.patch_size,
            size,
            self.device,
        )

    def propose(self, wave: Wave) -> "PendingProposals":
        """Encode all windows of a wave, score the vocabulary and purify it (stage 1); nothing is waited for."""
        return self.propose_encoded(wave, self.encode(wave), self.room)

    @torch.inference_mode()
    def encode(self, wave: Wave) -> Encoded:
        """Run the tower and the dense head over the windows, in full batches."""
        features, attention = [], []
        for part in wave.parts(self.window_batch):
            with self._timed("windows"):
                pixels = normalize(wave.pixels.cut_windows(part), *self.normalization)
            with self._timed("encoder"):
                trace = self.encoder.trace(pixels, self.request)
            with self._timed("dense_head"), self._products_as_exact_as_the_tower():
                features.append(F.normalize(self.head.features(self.encoder, trace).float(), dim=-1))
            if trace.mean_attention is not None:
                attention.append(trace.mean_attention)
        return Encoded(torch.cat(features), torch.cat(attention) if attention else None)

    @torch.inference_mode()
    def propose_encoded(self, wave: Wave, encoded: Encoded, room: Room | None = None) -> "PendingProposals":
        """Score and purify the vocabulary on windows that are encoded already.

        Args:
            wave: The windows.
            encoded: What the tower made of them.
            room: How much may be kept, so that nothing has to be counted; None counts.
        """
        sound = finite_rows(encoded.features)
        if encoded.attention is not None:
            sound &= encoded.attention.sum((1, 2)).isfinite()
        images = wave.placement.images
        image_sound = images.reduce(sound.int(), "amin") > 0
        if self.purifier is None or encoded.attention is None:
            with self._timed("scores"):
                # phrases by patches, or, where a vocabulary has more phrases than dimensions, the features themselves
                scored = len(self._phrases) <= encoded.features.shape[2]
                maps = encoded.features.mT
                whole = Proposals(wave.sizes, wave.layouts, self._phrases @ maps if scored else maps, scored)
                return PendingProposals(self, wave, encoded, whole, Download([image_sound]))
        with self._timed("purification"):
            # what is no number must not reach the sums that images of a batch share a table for
            features, attention = (
                torch.where(sound[:, None, None], table, 0) for table in (encoded.features, encoded.attention)
            )
            with self._products_as_exact_as_the_tower():
                purified = self.purifier.purify(WindowBatch(features, attention, wave.placement), room)
        with self._timed("crops"):
            groups, rows = purified.groups, room.regions * len(wave.sizes) if room else None
            regions = list_regions(groups, wave.placement, rows)
            side = self.config.purification.crop_size
            crops = wave.pixels.cut_regions(regions.image, regions.corners, side)
        complete = purified.complete & regions.complete
        decided = (
            purified.scores.float(),
            purified.kept.classes,
            groups.used,
            groups.boxes,
            groups.members,
            purified.needed,
            complete,
        )
        maps = (purified.kept.maps.float() * MAP_LEVELS).round_().div_(MAP_LEVELS)
        whole = Proposals(wave.sizes, wave.layouts, maps, crops=crops)
        return PendingProposals(
            self, wave, encoded, whole, Download([image_sound, *decided]), groups.by_window
        )

    def proposals_of_rows(self, rows: Sequence[Mapping[str, Any]]) -> Proposals:
        """Put rows of `Proposals.to_rows` together, which other processes may have made.

        Args:
            rows: Of images whose windows have one size.
        """
        config = self.config
        layout = WindowLayout.of(*size_in(rows[0], "resized"), config.windows)
        rows_of_patches, columns = self.encoder.grid_of(layout.window_size)
        patches = rows_of_patches * columns
        return Proposals.from_rows(rows, config.windows, patches, config.purification.crop_size)

    @torch.inference_mode()
    def finish(self, proposals: Proposals) -> list[Segmentation | ImageError]:
        """Encode the crops, pick winners and assign labels at the images' sizes (stage 2).

        An image whose features or scores are not finite has the error in its place.
        """
        with self._timed("finish"):
            return self.finisher.finish(proposals)

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


@dataclass(frozen=True)
class PendingProposals:
    """Proposals whose decisions are on their way to CPU memory.

    Attributes:
        engine: What made them, should they have to be made again.
        wave: Their images.
        encoded: The windows, encoded.
        proposals: All that stays on the device.
        download: Which images are sound; with purification scores, kept classes, groups, and whether they had room.
        by_window: Whether windows decided.
    """

    engine: SegmentationEngine
    wave: Wave
    encoded: Encoded
    proposals: Proposals
    download: Download
    by_window: bool = False

    def wait(self) -> Proposals:
        """Return the proposals as soon as their decisions are there.

        What needed more room than it had is done again, by counting.
        """
        sound, *decided = self.download.wait()
        if not decided:
            return replace(self.proposals, sound=sound)
        scores, classes, used, boxes, members, needed, complete = decided
        self.engine.learn(*needed.tolist())
        if not complete:
            return self.engine.propose_encoded(self.wave, self.encoded, room=None).wait()
        counts = self.proposals.window_counts
        regions = Regions.of_tables(used, boxes, members, self.by_window, counts)
        # of the places that were kept free, those that nobody took go
        places = 1 + int(np.flatnonzero((classes != NOBODY).any(0)).max(initial=-1))
        decisions, maps = Decisions(scores, classes[:, :places], regions), self.proposals.maps[:, :places]
        if self.engine.must_keep:
            decisions, maps = _keep_something(decisions, maps)
        crops = None if self.proposals.crops is None else self.proposals.crops[: regions.has_area.sum()]
        return replace(self.proposals, maps=maps, sound=sound, decisions=decisions, crops=crops)


def _keep_something(decisions: Decisions, maps: Tensor) -> tuple[Decisions, Tensor]:
    """Give an image whose every class was removed its best-scored one, where no background can take the image."""
    classes = decisions.classes
    if not classes.shape[1]:
        classes, maps = np.full((len(classes), 1), NOBODY), maps.new_zeros(maps.shape[0], 1, maps.shape[2])
    nothing = (classes == NOBODY).all(1)
    if nothing.any():
        classes = classes.copy()
        classes[nothing, 0] = np.nanargmax(decisions.scores[nothing], 1)
    return Decisions(decisions.scores, classes, decisions.regions), maps


def plan_waves(layouts: Sequence[WindowLayout], limit: int) -> list[list[int]]:
    """Group images by window size into waves of at most `limit` windows (one image at least)."""
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, layout in enumerate(layouts):
        by_size[layout.window_size].append(index)
    waves = []
    for members in by_size.values():
        wave: list[int] = []
        windows = 0
        for index in members:
            if wave and windows + len(layouts[index]) > limit:
                waves.append(wave)
                wave, windows = [], 0
            wave.append(index)
            windows += len(layouts[index])
        waves.append(wave)
    return waves
