"""The labelling engine: images to proposals (stage 1), proposals to labels (stage 2). It knows no Ray."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ovss_core.check import background_policy
from ovss_core.class_purification.purifier import ClassPurifier, PurificationInput
from ovss_core.class_purification.winners import ImagePurification, is_degenerate
from ovss_core.config import SegmenterConfig
from ovss_core.dense_heads import HeadOptions, build_head
from ovss_core.encoders.checkpoints import ClipModel, load_clip
from ovss_core.encoders.image_encoder import ImageEncoder
from ovss_core.encoders.text_encoder import TextClassifier
from ovss_core.errors import ConfigError, ImageError
from ovss_core.inference.finiteness import WINDOWS, finite_images, not_finite, raise_first
from ovss_core.inference.preprocessing import normalise, resize_image
from ovss_core.inference.proposal import PhraseFeatures, Proposal, PurifiedClasses
from ovss_core.inference.resolution import Resolver, Winners
from ovss_core.inference.windows import WindowLayout
from ovss_core.segmentation import Segmentation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WAVE_BATCHES = 4
WINDOW_BATCH, WINDOW_BATCH_CPU = 64, 8


@dataclass(frozen=True)
class PreparedImage:
    """A decoded image, resized for windows.

    Attributes:
        size: Height and width of the image.
        pixels: The resized image, uint8 RGB [height, width, 3].
    """

    size: tuple[int, int]
    pixels: np.ndarray


class SegmentationEngine:
    """Holds CLIP's image tower and the encoded vocabulary, and labels images in batches.

    Args:
        config: Decides what every image gets.
        clip: The model; only its image tower is kept.
        text: The encoded vocabulary.
        device: Where to compute.

    Raises:
        ModelError: The image tower is no plain ViT.
        ConfigError: The host is unknown, or the settings do not fit the vocabulary.

    Attributes:
        timings: Seconds spent by stage since the last `take_timings`.
    """

    def __init__(
        self,
        config: SegmenterConfig,
        clip: ClipModel,
        text: TextClassifier,
        device: str | torch.device = "cpu",
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.encoder = ImageEncoder(clip.model.visual.to(self.device, DTYPES[config.model.precision]))
        self._mean, self._std = clip.image_mean, clip.image_std
        purifying = config.purification.method == "freecp"
        self.head = build_head(config.host, HeadOptions(purified=purifying, sfp=config.sfp))
        request = self.head.request(self.encoder.depth)
        self.request = request.with_mean_attention() if purifying else request
        if config.windows.size < self.encoder.patch_size:
            raise ConfigError(
                f"windows of {config.windows.size} pixels are smaller than the model's patches of "
                f"{self.encoder.patch_size}; give a larger windows.size"
            )
        self.timings: dict[str, float] = defaultdict(float)
        self._offer(text)

    def _offer(self, text: TextClassifier) -> None:
        """Take up a vocabulary."""
        self.text = text
        purification = self.config.purification
        policy = background_policy(self.config, text.vocabulary)
        purifying = purification.method == "freecp"
        self.purifier = ClassPurifier(purification, text, policy, self.device) if purifying else None
        self._phrases = text.phrase_embeddings.to(self.device)
        self.resolver = Resolver(
            self.config, text, self.encoder, self.device, self.window_batch, self.request.resampling
        )

    def with_vocabulary(self, text: TextClassifier, config: SegmenterConfig) -> "SegmentationEngine":
        """Return an engine on the same image tower and host for another vocabulary.

        Args:
            config: May differ in purification and labels only.
        """
        other = copy(self)
        other.config, other.timings = config, defaultdict(float)
        other._offer(text)
        return other

    @classmethod
    def build(
        cls, config: SegmenterConfig, text: TextClassifier, device: str | torch.device = "cpu"
    ) -> "SegmentationEngine":
        """Load the model that `config` names and build the engine."""
        return cls(config, load_clip(config.model), text, device)

    @property
    def window_batch(self) -> int:
        """Windows encoded at once."""
        return self.config.window_batch or (WINDOW_BATCH_CPU if self.device.type == "cpu" else WINDOW_BATCH)

    @property
    def needs_resolution(self) -> bool:
        """Whether stage 2 has crops to encode, so that it deserves a pool of its own."""
        purification = self.config.purification
        return purification.method == "freecp" and purification.ambiguity

    def take_timings(self) -> dict[str, float]:
        """Return the seconds by stage, and start counting anew."""
        taken, self.timings = dict(self.timings), defaultdict(float)
        return taken

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Resize a decoded image (uint8 RGB [height, width, 3]) for windows; safe to call from threads."""
        windows = self.config.windows
        pixels = resize_image(image, windows.short_side, windows.long_side, self.encoder.patch_size)
        return PreparedImage((image.shape[0], image.shape[1]), pixels)

    def segment(self, images: Sequence[np.ndarray | PreparedImage]) -> list[Segmentation]:
        """Label images: both stages, one after the other."""
        return self.resolve(self.propose(images))

    def propose(self, images: Sequence[np.ndarray | PreparedImage]) -> list[Proposal]:
        """Encode all windows of all images, score the vocabulary and purify it (stage 1).

        Args:
            images: Decoded images, uint8 RGB [height, width, 3], any sizes, or prepared ones.

        Raises:
            ImageError: The features of an image are not finite; `propose_each` gives the others all the same.
        """
        return raise_first(self.propose_each(images))

    def propose_each(self, images: Sequence[np.ndarray | PreparedImage]) -> list[Proposal | ImageError]:
        """Do as `propose`; an image whose features are not finite has the error in its place."""
        with self._timed("resize"):
            prepared = [
                image if isinstance(image, PreparedImage) else self.prepare(image) for image in images
            ]
        layouts = [
            WindowLayout.of(image.pixels.shape[0], image.pixels.shape[1], self.config.windows)
            for image in prepared
        ]
        proposals: dict[int, Proposal | ImageError] = {}
        for wave in plan_waves(layouts, self.window_batch * WAVE_BATCHES):
            found = self._propose_wave([prepared[i] for i in wave], [layouts[i] for i in wave])
            proposals.update(zip(wave, found, strict=True))
        return [proposals[index] for index in range(len(prepared))]

    def resolve(self, proposals: Sequence[Proposal]) -> list[Segmentation]:
        """Encode the crops of all proposals, pick winners and assign labels at the images' sizes (stage 2).

        Raises:
            ImageError: The features or scores of an image are not finite; `resolve_each` labels the others all the
                same.
        """
        return raise_first(self.resolve_each(proposals))

    def resolve_each(self, proposals: Sequence[Proposal]) -> list[Segmentation | ImageError]:
        """Do as `resolve`; an image whose features or scores are not finite has the error in its place."""
        with torch.inference_mode():
            with self._timed("ambiguity_crops"):
                winners = self.resolver.winners_each(proposals)
            with self._timed("labels"):
                return [
                    self._label(proposal, decided)
                    for proposal, decided in zip(proposals, winners, strict=True)
                ]

    def _label(self, proposal: Proposal, decided: Winners | ImageError) -> Segmentation | ImageError:
        if isinstance(decided, ImageError):
            return decided
        try:
            return self.resolver.label(proposal, decided)
        except ImageError as error:
            return error

    @torch.inference_mode()
    def _propose_wave(
        self, images: list[PreparedImage], layouts: list[WindowLayout]
    ) -> list[Proposal | ImageError]:
        """Run stage 1 on images whose windows all have one size."""
        with self._timed("windows"):
            windows = np.concatenate(
                [layout.cut(image.pixels) for image, layout in zip(images, layouts, strict=True)]
            )
        return self.propose_encoded(images, layouts, *self.encode_windows(windows))

    @torch.inference_mode()
    def propose_encoded(
        self,
        images: Sequence[PreparedImage],
        layouts: Sequence[WindowLayout],
        features: Float[Tensor, "windows patches features"],
        attention: Float[Tensor, "windows patches patches"] | None,
    ) -> list[Proposal | ImageError]:
        """Score and purify the vocabulary on windows that are encoded already.

        An image whose features or attention are not finite has an error in its place.

        Args:
            images: Prepared images, all of one window size.
            layouts: Where their windows lie.
            features: From `encode_windows`, the windows of all images one after the other.
            attention: From the same; read only where purification follows.
        """
        finite = finite_images(features, attention, [len(layout) for layout in layouts])
        if all(finite):
            return [*self._propose_finite(images, layouts, features, attention)]
        kept = [place for place, sound in enumerate(finite) if sound]
        windows = torch.tensor(finite).repeat_interleave(torch.tensor([len(layout) for layout in layouts]))
        sound_attention = None if attention is None else attention[windows.to(attention.device)]
        sound_features = features[windows.to(features.device)]
        proposals = iter(
            self._propose_finite(
                [images[place] for place in kept],
                [layouts[place] for place in kept],
                sound_features,
                sound_attention,
            )
            if kept
            else ()
        )
        return [next(proposals) if sound else not_finite(WINDOWS) for sound in finite]

    def _propose_finite(
        self,
        images: Sequence[PreparedImage],
        layouts: Sequence[WindowLayout],
        features: Tensor,
        attention: Tensor | None,
    ) -> list[Proposal]:
        contents: Sequence[PhraseFeatures | PurifiedClasses]
        if self.purifier is None:
            with self._timed("scores"):
                contents = self._phrase_features(features, [len(layout) for layout in layouts])
        else:
            assert attention is not None, "a purifier asks for the mean attention"
            with self._timed("purification"):
                purified = self.purifier.purify(self.purification_input(features, attention, layouts))
            with self._timed("crops"):
                contents = [
                    self._purified_content(image, layout, result)
                    for image, layout, result in zip(images, layouts, purified, strict=True)
                ]
        return [
            Proposal(image.size, layout.image_size, content)
            for image, layout, content in zip(images, layouts, contents, strict=True)
        ]

    @torch.inference_mode()
    def encode_windows(
        self, windows: UInt8[np.ndarray, "windows height width 3"]
    ) -> tuple[Float[Tensor, "windows patches features"], Float[Tensor, "windows patches patches"] | None]:
        """Encode windows of one size in full batches.

        Returns:
            The host's features as unit vectors, and the mean attention where purification follows.
        """
        features, attention = [], []
        for start in range(0, len(windows), self.window_batch):
            with self._timed("windows"):
                pixels = self.normalise(windows[start : start + self.window_batch])
            with self._timed("encoder"):
                trace = self.encoder.trace(pixels, self.request)
            with self._timed("dense_head"):
                features.append(F.normalize(self.head.features(self.encoder, trace).float(), dim=-1))
            if trace.mean_attention is not None:
                attention.append(trace.mean_attention)
        return torch.cat(features), torch.cat(attention) if attention else None

    def normalise(
        self, windows: UInt8[np.ndarray, "windows height width 3"]
    ) -> Float[Tensor, "windows 3 height width"]:
        """Bring pixels to the device, as the image tower reads them."""
        writeable = windows if windows.flags.writeable else windows.copy()
        pixels: Tensor = normalise(torch.from_numpy(writeable).to(self.device), self._mean, self._std)
        return pixels

    def _phrase_features(self, features: Tensor, counts: list[int]) -> list[PhraseFeatures]:
        scored = len(self._phrases) <= features.shape[-1]
        values = features @ self._phrases.T if scored else features
        return [PhraseFeatures(part.cpu().numpy(), scored) for part in values.split(counts)]

    def purification_input(
        self, features: Tensor, attention: Tensor, layouts: Sequence[WindowLayout]
    ) -> PurificationInput:
        """Put the encoded windows of several images, all of one window size, into the purifier's form."""
        counts = torch.tensor([len(layout) for layout in layouts])
        origins = [origin for layout in layouts for origin in layout.origins]
        return PurificationInput(
            features=features,
            attention=attention,
            grid=self.encoder.grid_of(layouts[0].window_size),
            image_index=torch.repeat_interleave(torch.arange(len(layouts)), counts).to(self.device),
            window_origin=torch.tensor(origins).to(self.device),
            image_sizes=[layout.image_size for layout in layouts],
            patch_size=self.encoder.patch_size,
            window_size=layouts[0].window_size,
        )

    def _purified_content(
        self, image: PreparedImage, layout: WindowLayout, result: ImagePurification
    ) -> PurifiedClasses:
        """Cut and resize the crops of an image's ambiguous regions, and bring everything to the host."""
        crop_of = tuple(
            (group_index, box_index)
            for group_index, group in enumerate(result.groups)
            for box_index, box in enumerate(group.boxes)
            if not is_degenerate(box)
        )
        side = self.config.purification.crop_size
        crops = np.zeros((len(crop_of), 3, side, side), np.float32)
        for slot, (group_index, box_index) in enumerate(crop_of):
            group = result.groups[group_index]
            top, left = (0, 0) if group.window is None else layout.origins[group.window]
            x0, y0, x1, y1 = group.boxes[box_index]
            region = self.normalise(image.pixels[None, top + y0 : top + y1, left + x0 : left + x1])
            crops[slot] = F.interpolate(region, (side, side), mode="bilinear")[0].cpu().numpy()
        return PurifiedClasses(
            scores=result.scores.float().cpu().numpy(),
            kept=result.kept.cpu().numpy(),
            maps=result.maps.float().cpu().numpy(),
            groups=result.groups,
            crops=crops,
            crop_of=crop_of,
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] += time.perf_counter() - start


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
