"""The hosts beside the papers' own tables equal their loop-written forms."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ovss_core.check import validate
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import TraceRequest
from ovss_core.config import (
    CliptraseConfig,
    HeadSettings,
    ItaClipConfig,
    ModelConfig,
    PearlConfig,
    ResClipBase,
    ResClipConfig,
    RfClipConfig,
    SegmenterConfig,
)
from ovss_core.dense_heads import HeadOptions, build_head
from ovss_core.dense_heads.pearl import polar_steps
from ovss_core.errors import ConfigError
from ovss_core.feature_purification.channels import ChannelRepair
from tests import oracles_hosts
from tests.oracles import Array
from tests.tiny import random_windows, slow_tower, tiny_tower

SIZES = [(32, 32), (24, 40), (8, 48)]


def _features(
    encoder: ImageEncoder, host: str, windows: Tensor, settings: HeadSettings | None = None
) -> Array:
    head = build_head(host, HeadOptions(settings=settings))
    found: Array = head.features(encoder, encoder.trace(windows, head.request(encoder.depth)))[0].numpy()
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [4, 8])
def test_clipsurgery_equals_its_loop_written_form(size: tuple[int, int], depth: int) -> None:
    tower, windows = tiny_tower(depth=depth), random_windows(1, *size)
    expected = oracles_hosts.clipsurgery(slow_tower(tower), windows[0].double().numpy())
    np.testing.assert_allclose(_features(ImageEncoder(tower), "clipsurgery", windows), expected, atol=2e-4)


@pytest.mark.parametrize("size", SIZES)
def test_cliptrase_equals_its_loop_written_form(size: tuple[int, int]) -> None:
    tower, windows = tiny_tower(), random_windows(1, *size)
    expected = oracles_hosts.cliptrase(slow_tower(tower), windows[0].double().numpy())
    np.testing.assert_allclose(_features(ImageEncoder(tower), "cliptrase", windows), expected, atol=2e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("base", ["naclip", "clearclip", "sclip"])
@pytest.mark.parametrize(("depth", "residual"), [(12, range(6, 10)), (4, (2, 3))])
def test_resclip_equals_its_loop_written_form(
    size: tuple[int, int], base: ResClipBase, depth: int, residual: range
) -> None:
    tower, windows = tiny_tower(depth=depth), random_windows(1, *size)
    expected = oracles_hosts.resclip(
        slow_tower(tower), windows[0].double().numpy(), base, residual, share=0.4, gain=1.5
    )
    features = _features(ImageEncoder(tower), "resclip", windows, ResClipConfig(base, 0.4, 1.5))
    np.testing.assert_allclose(features, expected, atol=5e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("depth", "middle"), [(12, (7, 8, 10)), (4, (2, 3, 3))])
def test_itaclip_equals_its_loop_written_form(
    size: tuple[int, int], own: bool, depth: int, middle: tuple[int, ...]
) -> None:
    tower, windows = tiny_tower(depth=depth), random_windows(1, *size)
    expected = oracles_hosts.itaclip(slow_tower(tower), windows[0].double().numpy(), middle, own)
    features = _features(ImageEncoder(tower), "itaclip", windows, ItaClipConfig(own))
    np.testing.assert_allclose(features, expected, atol=5e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("iterations", [1, 5, None])
def test_pearl_equals_its_loop_written_form(size: tuple[int, int], iterations: int | None) -> None:
    tower, windows = tiny_tower(), random_windows(1, *size)
    expected = oracles_hosts.pearl(slow_tower(tower), windows[0].double().numpy(), 0.2, iterations)
    settings = (
        PearlConfig("svd", centered_weight=0.2)
        if iterations is None
        else PearlConfig(iterations=iterations, centered_weight=0.2)
    )
    # six patches span fewer directions than a head has, and the singular vectors of the rest are anybody's
    if iterations is None and size[0] * size[1] // 64 < 16:
        pytest.skip("no orthogonal factor is the only one")
    np.testing.assert_allclose(
        _features(ImageEncoder(tower), "pearl", windows, settings), expected, atol=1e-3
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "threshold"), [((3, 17), 1.5), ((), 1.5), ((30,), 0.1)])
def test_rfclip_equals_its_loop_written_form(
    size: tuple[int, int], channels: tuple[int, ...], threshold: float
) -> None:
    tower, windows = tiny_tower(), random_windows(1, *size)
    expected = oracles_hosts.rfclip(
        slow_tower(tower), windows[0].double().numpy(), channels, threshold, share=0.3
    )
    settings = RfClipConfig(channels, threshold, blend=0.3)
    np.testing.assert_allclose(
        _features(ImageEncoder(tower), "rfclip", windows, settings), expected, atol=5e-4
    )


def test_rfclip_asks_for_the_channels_of_a_checkpoint_that_nobody_has_measured() -> None:
    known = build_head("rfclip", HeadOptions(model=ModelConfig("ViT-B/16", "openai")))
    repair = known.request(12).repair
    assert isinstance(repair, ChannelRepair)
    assert len(repair.channels) == 8
    assert build_head("rfclip", HeadOptions(settings=RfClipConfig((1, 5)))).request(
        4
    ).repair == ChannelRepair((1, 5))
    for model in (None, ModelConfig("ViT-B-16", "laion2b_s34b_b88k")):
        with pytest.raises(
            ConfigError, match=r"are not known .*; find them with ovss channels and give them as"
        ):
            build_head("rfclip", HeadOptions(model=model)).request(12)
    validate(SegmenterConfig(ModelConfig("demo"), "rfclip"))
    with pytest.raises(ConfigError, match=r"of demo with the weights 'random' are not known"):
        validate(SegmenterConfig(ModelConfig("demo", "random"), "rfclip"))


def test_a_channel_that_the_tower_lacks_is_named() -> None:
    encoder = ImageEncoder(tiny_tower())
    with pytest.raises(
        ConfigError, match=r"channel 32 is to be watched, but the tower has 32: give channels"
    ):
        _features(encoder, "rfclip", random_windows(1, 32, 32), RfClipConfig((2, 32)))


def test_keys_are_the_same_whether_or_not_attention_is_wanted_too() -> None:
    encoder, windows = ImageEncoder(tiny_tower()), random_windows(2, 32, 40)
    request = TraceRequest(keys=frozenset({1, 3}))
    alone, beside = encoder.trace(windows, request), encoder.trace(windows, request.with_mean_attention())
    assert set(alone.keys) == {1, 3}
    for layer, key in alone.keys.items():
        assert torch.allclose(key, beside.keys[layer], atol=1e-4)


def test_many_polar_steps_arrive_at_the_orthogonal_factor() -> None:
    matrix = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 4 * torch.eye(8)
    left, _, right = torch.linalg.svd(matrix)
    assert torch.allclose(polar_steps(matrix, 30), left @ right, atol=1e-3)
    assert not torch.allclose(polar_steps(matrix, 5), left @ right, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResClipConfig("gem"), r"resclip\.base is 'gem'; give one of 'naclip'"),  # type: ignore[arg-type]
        (
            lambda: ResClipConfig(residual_weight=1.5),
            r"resclip\.residual_weight is 1\.5; give a number from 0",
        ),
        (lambda: ResClipConfig(gain=0), r"resclip\.gain is 0; give a number above 0"),
        (lambda: PearlConfig("qr"), r"pearl\.alignment is 'qr'; give one of 'polar', 'svd'"),  # type: ignore[arg-type]
        (lambda: PearlConfig(iterations=0), r"pearl\.iterations is 0; give at least 1"),
        (
            lambda: ResClipConfig(feedback_weight=2),
            r"resclip\.feedback_weight is 2; give a number from 0 to 1",
        ),
        (lambda: ResClipConfig(feedback_gain=0), r"resclip\.feedback_gain is 0; give a number above 0"),
        (
            lambda: ResClipConfig(feedback_threshold=-1),
            r"resclip\.feedback_threshold is -1; give a number from",
        ),
        (lambda: CliptraseConfig(distance=0), r"cliptrase\.distance is 0; give a number above 0"),
        (lambda: CliptraseConfig(neighbors=0), r"cliptrase\.neighbors is 0; give at least 1"),
        (lambda: RfClipConfig((3, -1)), r"rfclip\.channels has \[-1\]; channels count from 0"),
        (lambda: RfClipConfig(channel_threshold=0), r"rfclip\.channel_threshold is 0; give a number above 0"),
        (lambda: RfClipConfig(blend=2), r"rfclip\.blend is 2; give a number from 0 to 1"),
        (
            lambda: PearlConfig(centered_weight=-1),
            r"pearl\.centered_weight is -1; give a number of at least 0",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
