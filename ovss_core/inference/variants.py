"""Labelling the same images by several settings of one model, with the work that they share done once.

Settings with equal windows share resizing and cutting; those whose heads read the same blocks share one pass
through the image tower; those with the same head share its features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.config import SfpConfig, WindowConfig
from ovss_core.encoders.trace import TraceRequest, merge_requests
from ovss_core.errors import ConfigError
from ovss_core.inference.engine import WAVE_BATCHES, PreparedImage, SegmentationEngine, plan_waves
from ovss_core.inference.finiteness import raise_first
from ovss_core.inference.windows import WindowLayout
from ovss_core.segmentation import Segmentation

Features = tuple[Float[Tensor, "windows patches features"], Float[Tensor, "windows patches patches"] | None]


class _HeadKey(NamedTuple):
    """What decides a window's features, given the model and its pixels."""

    host: str
    purified: bool
    sfp: SfpConfig | None


@dataclass(frozen=True)
class EncodedImages:
    """Images of one window size, encoded for one engine.

    Attributes:
        places: Their positions in the batch.
        images: The prepared images.
        layouts: Where their windows lie.
        features: Unit features of all their windows, image after image.
        attention: Mean attention of the windows, where purification follows.
    """

    places: tuple[int, ...]
    images: tuple[PreparedImage, ...]
    layouts: tuple[WindowLayout, ...]
    features: Float[Tensor, "windows patches features"]
    attention: Float[Tensor, "windows patches patches"] | None

    def single(self, position: int) -> "EncodedImages":
        """Return one of the images alone."""
        start = sum(map(len, self.layouts[:position]))
        windows = slice(start, start + len(self.layouts[position]))
        one = slice(position, position + 1)
        attention = None if self.attention is None else self.attention[windows]
        return EncodedImages(
            self.places[one], self.images[one], self.layouts[one], self.features[windows], attention
        )

    def segment(self, engine: SegmentationEngine) -> list[Segmentation]:
        """Label the images with an engine whose windows and head are those they were encoded with.

        Raises:
            ImageError: The features or scores of an image are not finite.
        """
        proposals = engine.propose_encoded(self.images, self.layouts, self.features, self.attention)
        return engine.resolve(raise_first(proposals))


class VariantEngines:
    """Several engines on one image tower.

    Args:
        engines: All of one model and device, in the order of the results.

    Raises:
        ConfigError: The engines hold different models.
    """

    def __init__(self, engines: Sequence[SegmentationEngine]) -> None:
        if len({engine.config.model for engine in engines}) != 1:
            raise ConfigError(
                "variants of one run must share one model; run once for each --model and compare the results"
            )
        self.engines = tuple(engines)
        self._trunks = _plan_trunks(self.engines)

    def encode(self, images: Sequence[np.ndarray]) -> list[list[EncodedImages]]:
        """Encode images for every engine.

        Args:
            images: Decoded images, uint8 RGB [height, width, 3], any sizes.

        Returns:
            For each engine the groups of images that have one window size; each image is in one of them.
        """
        encoded: list[list[EncodedImages]] = [[] for _ in self.engines]
        for windows, trunks in self._trunks.items():
            first = self.engines[trunks[0].members[0]]
            prepared = [first.prepare(image) for image in images]
            layouts = [
                WindowLayout.of(image.pixels.shape[0], image.pixels.shape[1], windows) for image in prepared
            ]
            for wave in plan_waves(layouts, first.window_batch * WAVE_BATCHES):
                chosen = tuple(prepared[place] for place in wave), tuple(layouts[place] for place in wave)
                pixels = np.concatenate(
                    [layout.cut(image.pixels) for image, layout in zip(*chosen, strict=True)]
                )
                for trunk in trunks:
                    for member, values in trunk.encode(self.engines, pixels):
                        encoded[member].append(EncodedImages(tuple(wave), *chosen, *values))
        return encoded

    def segment(self, images: Sequence[np.ndarray]) -> list[list[Segmentation]]:
        """Label images by every engine; one list an engine, in the order of the images."""
        results = []
        for engine, groups in zip(self.engines, self.encode(images), strict=True):
            placed = {
                place: result
                for group in groups
                for place, result in zip(group.places, group.segment(engine), strict=True)
            }
            results.append([placed[place] for place in range(len(images))])
        return results


@dataclass
class _Trunk:
    """Engines that one pass through the image tower serves."""

    members: list[int]
    request: TraceRequest

    @torch.inference_mode()
    def encode(
        self, engines: Sequence[SegmentationEngine], windows: np.ndarray
    ) -> list[tuple[int, Features]]:
        """Encode windows of one size; return the features and the attention for each member."""
        first = engines[self.members[0]]
        heads = {_head_key(engines[member]): engines[member].head for member in self.members}
        features: dict[_HeadKey, list[Tensor]] = {key: [] for key in heads}
        attention = []
        for start in range(0, len(windows), first.window_batch):
            pixels = first.normalise(windows[start : start + first.window_batch])
            trace = first.encoder.trace(pixels, self.request)
            for key, head in heads.items():
                features[key].append(F.normalize(head.features(first.encoder, trace).float(), dim=-1))
            if trace.mean_attention is not None:
                attention.append(trace.mean_attention)
        joined = {key: torch.cat(parts) for key, parts in features.items()}
        whole = torch.cat(attention) if attention else None
        return [(member, (joined[_head_key(engines[member])], whole)) for member in self.members]


def _head_key(engine: SegmentationEngine) -> _HeadKey:
    config = engine.config
    return _HeadKey(config.host, engine.purifier is not None, config.sfp if config.host == "sfp" else None)


def _plan_trunks(engines: Sequence[SegmentationEngine]) -> dict[WindowConfig, list[_Trunk]]:
    """Group engines by windows, and those by whether one trace can serve them."""
    trunks: dict[WindowConfig, list[_Trunk]] = {}
    for member, engine in enumerate(engines):
        candidates = trunks.setdefault(engine.config.windows, [])
        for trunk in candidates:
            try:
                trunk.request = merge_requests([trunk.request, engine.request])
            except ConfigError:
                continue
            trunk.members.append(member)
            break
        else:
            candidates.append(_Trunk([member], engine.request))
    return trunks
