"""Labelling the same images by several settings of one model, with the work that they share done once.

Settings with equal windows share resizing and cutting; those whose heads read the same blocks share one pass through
the image tower; those with the same head share its features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.clip.trace import TraceRequest, merge_requests
from ovss_core.config import HeadSettings, WindowConfig
from ovss_core.dense_heads.scoring import Evidence, as_scorer, join_evidence
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.finite import raise_first
from ovss_core.engine.waves import Encoded, Wave
from ovss_core.errors import ConfigError
from ovss_core.images.windows import PatchGrid
from ovss_core.regions import RegionMap
from ovss_core.results import Segmentation


class _HeadKey(NamedTuple):
    """What decides a head's features of a window, given the models and its pixels."""

    host: str
    purified: bool
    settings: HeadSettings | None
    scoped: bool


class _WaveKey(NamedTuple):
    """What decides how images are cut and where their windows' maps lie."""

    windows: WindowConfig
    cells: PatchGrid
    proxy_scale: int
    scoped: bool


@dataclass(frozen=True)
class EncodedWave:
    """Images of one window size, encoded for one engine."""

    wave: Wave
    encoded: Encoded

    def single(self, position: int, engine: SegmentationEngine) -> "EncodedWave":
        """Return one of the images alone, for an engine that the wave was encoded for."""
        return self.part(slice(position, position + 1), engine)

    def part(self, images: slice, engine: SegmentationEngine) -> "EncodedWave":
        """Return some neighboring images, for an engine that the wave was encoded for."""
        wave, encoded = self.wave, self.encoded
        ends = np.cumsum([0, *map(len, wave.layouts)])
        windows = slice(int(ends[images.start]), int(ends[images.stop]))
        attention = None if encoded.attention is None else encoded.attention[windows]
        return EncodedWave(
            Wave(
                wave.places[images],
                wave.sizes[images],
                wave.layouts[images],
                wave.pixels.part(images, windows),
                engine.place(wave.layouts[images]),
                region_maps=wave.region_maps and wave.region_maps[images],
            ),
            Encoded(
                encoded.features[windows],
                attention,
                encoded.evidence and {name: table[windows] for name, table in encoded.evidence.items()},
                None if encoded.whole is None else encoded.whole[images],
                tuple(features[windows] for features in encoded.of_heads),
            ),
        )

    def segment(self, engine: SegmentationEngine) -> list[Segmentation]:
        """Label the images with an engine whose windows and head are those they were encoded with.

        Raises:
            ImageError: The features or scores of an image are not finite.
        """
        return raise_first(engine.finish(engine.propose_encoded(self.wave, self.encoded, engine.room).wait()))


class VariantEngines:
    """Several engines on one image tower.

    Args:
        engines: All of one model and device, in the order of the results.

    Raises:
        ConfigError: The engines hold different models, or different second towers.
    """

    def __init__(self, engines: Sequence[SegmentationEngine]) -> None:
        if len({engine.config.model for engine in engines}) != 1:
            raise ConfigError(
                "variants of one run must share one model; run once for each --model and compare the results"
            )
        if len({engine.config.proxy for engine in engines if engine.proxy}) > 1:
            raise ConfigError(
                "variants of one run must share one second tower; run once for each --proxy and compare the results"
            )
        self.engines = tuple(engines)
        self._trunks = _plan_trunks(self.engines)

    def encode(
        self, images: Sequence[np.ndarray], regions: Sequence[RegionMap | None] | None = None
    ) -> list[list[EncodedWave]]:
        """Encode images for every engine.

        Args:
            images: Decoded images, uint8 RGB [height, width, 3], any sizes.
            regions: Their region maps, where there are any.

        Returns:
            For each engine the waves of images that have one window size; each image is in one of them.
        """
        found: list[list[EncodedWave]] = [[] for _ in self.engines]
        for trunks in self._trunks.values():
            first = self.engines[trunks[0].members[0]]
            own = regions or (None,) * len(images)
            prepared = [first.prepare(image, map_) for image, map_ in zip(images, own, strict=True)]
            for wave in first.gather(prepared):
                for trunk in trunks:
                    for member, encoded in trunk.encode(self.engines, wave):
                        found[member].append(EncodedWave(wave, encoded))
        return found

    def segment(self, images: Sequence[np.ndarray]) -> list[list[Segmentation]]:
        """Label images by every engine; one list an engine, in the order of the images."""
        results = []
        for engine, waves in zip(self.engines, self.encode(images), strict=True):
            placed = {
                place: result
                for encoded in waves
                for place, result in zip(encoded.wave.places, encoded.segment(engine), strict=True)
            }
            results.append([placed[place] for place in range(len(images))])
        return results


@dataclass
class _Trunk:
    """Engines that one pass through the image tower serves."""

    members: list[int]
    request: TraceRequest

    @torch.inference_mode()
    def encode(self, engines: Sequence[SegmentationEngine], wave: Wave) -> list[tuple[int, Encoded]]:
        """Encode windows of one size; return the features and the attention for each member."""
        first = next(
            (engines[member] for member in self.members if engines[member].proxy), engines[self.members[0]]
        )
        keys = {member: _head_keys(engines[member]) for member in self.members}
        heads = {
            key: head
            for member in self.members
            for key, head in zip(keys[member], engines[member].heads, strict=True)
        }
        features: dict[_HeadKey, list[Tensor]] = {key: [] for key in heads}
        evidence: dict[_HeadKey, list[Evidence]] = {key: [] for key in heads}
        attention = []
        for part in wave.parts(first.window_batch):
            trace, pixels = first.trace(wave, part, self.request)
            for key, head in heads.items():
                features[key].append(F.normalize(head.features(first.encoder, trace).float(), dim=-1))
                if scorer := as_scorer(head):
                    evidence[key].append(scorer.evidence(first.encoder, trace, pixels))
            if trace.mean_attention is not None:
                attention.append(first.resample_attention(trace.mean_attention, trace.grid, wave))
        joined = {key: torch.cat(parts) for key, parts in features.items()}
        kept = {key: join_evidence(parts) for key, parts in evidence.items()}
        common = torch.cat(attention) if attention else None
        priors = [member for member in self.members if engines[member].config.class_prior]
        whole = first.encode_whole(wave) if priors else None
        return [
            (
                member,
                Encoded.of(
                    *([joined[key] for key in own], common, kept[own[0]]), whole if member in priors else None
                ),
            )
            for member, own in keys.items()
        ]


def _head_keys(engine: SegmentationEngine) -> list[_HeadKey]:
    config = engine.config
    purified, scoped = not config.purification.own_scores, config.regions.scope
    return [_HeadKey(host, purified, config.head_settings(host), scoped) for host in config.hosts]


def _plan_trunks(engines: Sequence[SegmentationEngine]) -> dict[_WaveKey, list[_Trunk]]:
    """Group engines by what decides their waves, and those by whether one trace can serve them."""
    trunks: dict[_WaveKey, list[_Trunk]] = {}
    for member, engine in enumerate(engines):
        key = _WaveKey(
            engine.config.windows,
            engine.cells,
            engine.proxy.scale if engine.proxy else 1,
            engine.config.regions.scope,
        )
        candidates = trunks.setdefault(key, [])
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
