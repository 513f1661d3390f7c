"""Engines whose head reads a second tower: grids, scales, FreeCP over them, and sharing of work."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovss_core.config import ProxyConfig, PurificationConfig, SegmenterConfig, WindowConfig
from ovss_core.dense_heads import build_head
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.variants import VariantEngines
from ovss_core.errors import ConfigError
from ovss_core.head_names import proxy_hosts
from ovss_core.images.resize import normalize, resize_bilinear, resize_image
from ovss_core.images.windows import WindowLayout
from tests.tiny import WORDS, random_picture, tiny_clip, tiny_config, tiny_text
from tests.tiny_towers import DINO, POSITIONS, REGISTERS, ROTARY, add_tiny_families, tiny_proxy

PICTURES = [random_picture(*size) for size in [(1, 1), (1, 300), (37, 120), (60, 80), (45, 33)]]
METHODS = {
    "none": PurificationConfig("none"),
    "image": PurificationConfig(crop_size=16),
    "released": PurificationConfig(
        variant="released",
        thresholds="fixed",
        redundancy_threshold=0.02,
        ambiguity_threshold=0.3,
        crop_size=16,
    ),
    "paper": PurificationConfig(
        variant="paper", thresholds="fixed", redundancy_threshold=0.05, ambiguity_threshold=0.3, crop_size=16
    ),
}


def settings(
    host: str = "proxyclip", method: str = "none", name: str = DINO, scale: int = 1, size: int = 32
) -> SegmenterConfig:
    base = tiny_config(host, METHODS[method])
    windows = WindowConfig(size=size, stride=16, short_side=48, long_side=160)
    return replace(base, proxy=ProxyConfig(name, "random", scale), windows=windows)


def engine_of(config: SegmenterConfig) -> SegmentationEngine:
    proxy = tiny_proxy(config.proxy.name or DINO, config.proxy.scale)
    return SegmentationEngine(config, tiny_clip(), tiny_text(WORDS), proxy=proxy)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "scale"), [(DINO, 1), (DINO, 2), (REGISTERS, 1), (REGISTERS, 2), (ROTARY, 1)]
)
@pytest.mark.parametrize("host", sorted(proxy_hosts()))
def test_pictures_of_any_size_are_labelled_on_any_grid_and_together_as_alone(
    host: str, name: str, scale: int, method: str
) -> None:
    engine = engine_of(settings(host, method, name, scale, size=48))
    together = engine.segment(PICTURES)
    for picture, result in zip(PICTURES, together, strict=True):
        assert result.label_map.shape == picture.shape[:2]
        assert sum(entry.pixels for entry in result.present) == picture.shape[0] * picture.shape[1]
        [alone] = engine.segment([picture])
        assert (alone.label_map != result.label_map).mean() < 2e-3


@pytest.mark.parametrize("name", list(POSITIONS))
def test_features_are_those_of_the_head_on_windows_cut_by_hand(name: str) -> None:
    engine = engine_of(settings(name=name))
    picture = random_picture(60, 80)
    resized = resize_image(picture, 48, 160)
    windows = WindowLayout.of_image(resized, engine.config.windows).cut(resized)
    head, proxy = build_head("proxyclip"), tiny_proxy(name).tower("cpu", torch.float32)
    trace = engine.encoder.trace(normalize(windows, *engine.normalization), head.request(4))
    trace.proxy = proxy.features(normalize(windows, *proxy.normalization), {"tokens"})
    expected = F.normalize(head.features(engine.encoder, trace), dim=-1)
    [wave] = engine.gather([picture])
    torch.testing.assert_close(engine.encode(wave).features, expected, atol=1e-5, rtol=0)


def test_a_scaled_tower_sees_the_images_own_pixels_at_the_windows_places() -> None:
    engine = engine_of(settings(name=ROTARY, scale=2))
    picture = random_picture(120, 160)
    resized = resize_image(picture, 48, 160)
    layout = WindowLayout.of_image(resized, engine.config.windows)
    fine = resize_bilinear(picture, (2 * resized.shape[0], 2 * resized.shape[1]))
    [wave] = engine.gather([picture])
    assert wave.proxy_pixels is not None
    cut = wave.proxy_pixels.cut_windows(slice(0, len(layout)))
    for window, (top, left) in zip(cut.numpy(), layout.origins, strict=True):
        assert np.array_equal(window, fine[2 * top : 2 * top + 64, 2 * left : 2 * left + 64])
    assert engine.cells.of((32, 32)) == (4, 4)
    assert engine.encode(wave).features.shape[1] == 16


def test_cliptowers_attention_is_spread_to_the_finer_grid_and_left_alone_on_its_own() -> None:
    fine, same = (
        engine_of(settings(method="image")),
        engine_of(settings(method="image", name=ROTARY, scale=2)),
    )
    attention = torch.rand(2, 16, 16)
    [wave] = fine.gather([random_picture(32, 32)])
    assert torch.equal(fine.resample_attention(attention, (4, 4), wave), attention)
    assert fine.cells.of((32, 32)) == same.cells.of((32, 32)) == (4, 4)
    coarse = engine_of(settings(method="image", name=ROTARY))
    [wave] = coarse.gather([random_picture(32, 32)])
    spread = coarse.resample_attention(attention, (4, 4), wave)
    mean = attention.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(spread, mean.unflatten(2, (2, 2, 2, 2)).mean((3, 5)).flatten(2, 3))


def test_a_strip_that_is_thinner_than_a_patch_of_the_second_tower_still_fills_one() -> None:
    engine = engine_of(settings(name=ROTARY))
    [result] = engine.segment([random_picture(1, 200)])
    assert result.label_map.shape == (1, 200)


def test_variants_share_the_second_tower_and_label_as_each_engine_alone() -> None:
    configs = [
        settings("proxyclip", "none"),
        settings("proxyclip", "image", ROTARY),
        settings("clearclip", "none"),
        settings("sfp", "image"),
    ]
    configs = [replace(config, proxy=ProxyConfig(DINO, "random")) for config in configs]
    engines = [engine_of(config) for config in configs]
    assert [engine.proxy is not None for engine in engines] == [True, True, False, False]
    images = PICTURES[2:]
    for engine, shared in zip(engines, VariantEngines(engines).segment(images), strict=True):
        for one, other in zip(engine.segment(images), shared, strict=True):
            assert (one.label_map != other.label_map).mean() < 2e-3


def test_variants_of_two_second_towers_are_refused() -> None:
    engines = [engine_of(settings(name=name)) for name in (DINO, ROTARY)]
    with pytest.raises(ConfigError, match="must share one second tower"):
        VariantEngines(engines)


def test_another_second_tower_needs_an_engine_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_families(monkeypatch)
    engine = engine_of(settings())
    with pytest.raises(ConfigError, match="build an engine of its own"):
        engine.with_vocabulary(tiny_text(WORDS), settings(name=ROTARY))
    loaded = SegmentationEngine(settings(), tiny_clip(), tiny_text(WORDS))
    assert loaded.proxy is not None
    assert loaded.proxy.patch_size == 8


def test_windows_smaller_than_a_patch_of_the_second_tower_are_refused() -> None:
    config = replace(settings(name=ROTARY), windows=WindowConfig(8, 8, 48, 160))
    with pytest.raises(ConfigError, match="smaller than the model's patches of 16"):
        engine_of(config)


def test_waves_hold_fewer_windows_where_purification_spreads_on_a_finer_grid() -> None:
    plain, purified = (
        engine_of(settings("proxyclip")),
        engine_of(settings("proxyclip", "image", REGISTERS, 2)),
    )
    assert plain._wave_windows == 32
    assert purified._wave_windows == int(32 * (7 / 8) ** 4)
