from copy import deepcopy

import numpy as np
import pytest
import torch

from ovss_core.check import require_class_token, validate
from ovss_core.clip.architectures import find_architecture
from ovss_core.clip.timm_tower import TimmEncoder, open_tower
from ovss_core.clip.trace import TraceRequest
from ovss_core.config import (
    ClipSurgeryConfig,
    CliptraseConfig,
    ModelConfig,
    PurificationConfig,
    RfClipConfig,
    SegmenterConfig,
    SfpConfig,
)
from ovss_core.dense_heads import HeadOptions, build_head
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.errors import ConfigError, ModelError
from ovss_core.head_names import classless_hosts, clip_hosts
from tests.timm_towers import TOWERS, WITHOUT_CLASS_TOKEN, timm_clip
from tests.tiny import WORDS, random_picture, random_windows, tiny_config, tiny_text

ALL = sorted(TOWERS)
ROTARY = [name for name in ALL if "pe" in name.split("-") or "eva" in name]


def encoder_of(name: str) -> TimmEncoder:
    encoder = open_tower(deepcopy(timm_clip(name).model.visual))
    assert isinstance(encoder, TimmEncoder)
    return encoder


def options_for(host: str, classless: bool) -> HeadOptions:
    if host == "sfp" and classless:
        return HeadOptions(settings=SfpConfig(outlier_rule="local_outlier_factor"))
    return HeadOptions(settings=RfClipConfig((1, 2)) if host == "rfclip" else None)


@pytest.mark.parametrize("name", ALL)
def test_the_tower_taken_apart_embeds_as_open_clip_does(name: str) -> None:
    clip, windows = timm_clip(name), random_windows(3, 32, 32)
    with torch.inference_mode():
        expected = clip.model.encode_image(windows)
        found = encoder_of(name).class_features(windows)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_off_its_own_grid_it_embeds_as_timm_fitted_to_that_grid(name: str) -> None:
    visual, windows = deepcopy(timm_clip(name).model.visual), random_windows(2, 40, 56)
    encoder = encoder_of(name)
    if name == "tiny-mobileclip":
        pytest.skip("timm fits no tower behind a stem to another size")
    with torch.inference_mode():
        visual.trunk.set_input_size(img_size=(40, 56))
        torch.testing.assert_close(
            encoder.class_features(windows, "antialias"), visual(windows), atol=2e-5, rtol=1e-4
        )
        encoder.class_features(random_windows(1, 56, 40), "antialias")  # as many patches, another grid
        torch.testing.assert_close(
            encoder.class_features(windows, "antialias"), visual(windows), atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize("name", ALL)
def test_the_mean_attention_is_that_of_timms_own_modules(name: str) -> None:
    clip, windows = timm_clip(name), random_windows(2, 32, 32)
    encoder, trunk = encoder_of(name), deepcopy(clip.model.visual.trunk)
    maps: list[torch.Tensor] = []
    for block in trunk.blocks[:-1]:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _m, _i, output: maps.append(output.mean(1)))
    with torch.inference_mode():
        trunk.forward_features(windows)
        trace = encoder.trace(windows, TraceRequest(mean_attention=True))
    first = encoder.prefix
    expected = torch.stack(maps).mean(0)[:, first:, first:]
    assert trace.mean_attention is not None
    torch.testing.assert_close(trace.mean_attention, expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["tiny-pooled", "tiny-pe"])
def test_a_patch_alone_goes_the_way_of_a_pool_that_sees_nothing_else(name: str) -> None:
    visual, encoder = timm_clip(name).model.visual, encoder_of(name)
    tokens = torch.randn(2, 1, encoder.width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        normed = visual.trunk.norm(tokens)
        expected = visual.head(visual.trunk.head(visual.trunk.fc_norm(visual.trunk.attn_pool(normed))))
        torch.testing.assert_close(encoder.project(tokens)[:, 0], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_every_head_that_can_reads_it_and_a_batch_gives_what_its_windows_give(name: str) -> None:
    encoder, windows = encoder_of(name), random_windows(2, 40, 56)
    classless = name in WITHOUT_CLASS_TOKEN
    hosts = sorted(classless_hosts() & set(clip_hosts())) if classless else clip_hosts()
    for host in hosts:
        head = build_head(host, options_for(host, classless))
        request = head.request(encoder.depth)
        with torch.inference_mode():
            whole = head.features(encoder, encoder.trace(windows, request))
            singles = [head.features(encoder, encoder.trace(part, request)) for part in windows.split(1)]
        assert whole.shape == (2, 35, encoder.output_dim), host
        assert whole.isfinite().all(), host
        scale = whole.abs().amax()
        torch.testing.assert_close(whole / scale, torch.cat(singles) / scale, atol=2e-4, rtol=0, msg=host)


@pytest.mark.parametrize("name", ["tiny-pooled", "tiny-eva"])
@pytest.mark.parametrize("method", ["none", "freecp"])
def test_a_picture_is_labelled_by_it_with_and_without_freecp(name: str, method: str) -> None:
    clip = timm_clip(name)
    config = tiny_config("clearclip", PurificationConfig(method, crop_size=16))  # type: ignore[arg-type]
    text = tiny_text(WORDS, features=32)
    pictures = [random_picture(48, 64), random_picture(70, 50)]
    engine = SegmentationEngine(config, deepcopy(clip), text)
    found = engine.segment(pictures)
    for picture, result in zip(pictures, found, strict=True):
        assert result.label_map.shape == picture.shape[:2]
        np.testing.assert_array_equal(engine.segment([picture])[0].label_map, result.label_map)


def test_labels_fed_back_late_still_lie_on_their_own_grid() -> None:
    """Rotary positions are those of the windows scored, even if others were embedded in between."""
    from ovss_core.config import ResClipConfig
    from ovss_core.dense_heads.resclip import ResClipHead
    from ovss_core.dense_heads.scoring import EncodedWindows, Words

    encoder, windows = encoder_of("tiny-eva"), random_windows(1, 40, 56)
    head = ResClipHead(HeadOptions(settings=ResClipConfig(feedback=True)))
    rows = torch.nn.functional.normalize(
        torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), dim=1
    )
    words = Words(rows, torch.zeros(5, dtype=torch.bool), rows[:0])
    with torch.inference_mode():
        trace = encoder.trace(windows, head.request(encoder.depth))
        features = torch.nn.functional.normalize(head.features(encoder, trace), dim=-1)
        kept = EncodedWindows(trace.grid, features, head.evidence(encoder, trace, windows))
        at_once = head.scores(encoder, kept, words).phrases
        encoder.embed(random_windows(1, 56, 40))
        torch.testing.assert_close(head.scores(encoder, kept, words).phrases, at_once)


@pytest.mark.parametrize("name", WITHOUT_CLASS_TOKEN)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SegmenterConfig(host="sfp"), r"sfp\.outlier_rule attention .*give norm or local_outlier_factor"),
        (SegmenterConfig(host="sfp", sfp=SfpConfig("paper")), r"sfp\.variant paper .*give released"),
        (SegmenterConfig(host="rfclip"), r"host 'rfclip' reads the class token.*give one of clearclip, clip"),
        (
            SegmenterConfig(host="clipsurgery", clipsurgery=ClipSurgeryConfig(True)),
            r"clipsurgery\.feature_surgery weighs words by the class token",
        ),
        (
            SegmenterConfig(host="cliptrase", cliptrase=CliptraseConfig(True)),
            r"cliptrase\.clustering compares patches with the class token",
        ),
    ],
)
def test_what_reads_a_class_token_is_refused_where_there_is_none(
    name: str, config: SegmenterConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        require_class_token(config, encoder_of(name).prefix > 0)


@pytest.mark.parametrize(
    ("name", "patch", "depth", "class_token"),
    [
        ("EVA02-B-16", 16, 12, True),
        ("EVA02-L-14", 14, 24, True),
        ("MobileCLIP-B", 16, 12, True),
        ("PE-Core-B-16", 16, 12, True),
        ("PE-Core-L-14-336", 14, 24, True),
        ("PE-Core-bigG-14-448", 14, 50, False),
    ],
)
def test_its_description_is_known_before_it_is_built(
    name: str, patch: int, depth: int, class_token: bool
) -> None:
    found = find_architecture(name)
    assert found is not None
    assert (found.patch_size, found.depth, found.class_token) == (patch, depth, class_token)


def test_a_host_that_cannot_read_it_is_refused_before_anything_is_loaded() -> None:
    config = SegmenterConfig(model=ModelConfig("PE-Core-bigG-14-448", "random"), host="corrclip")
    with pytest.raises(ConfigError):
        validate(config)


def test_a_tower_that_pools_by_the_mean_is_refused() -> None:
    visual = deepcopy(timm_clip("tiny-clip").model.visual)
    visual.trunk.global_pool = "avg"
    with pytest.raises(ModelError, match="pools by 'avg'"):
        open_tower(visual)
