import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import TraceRequest
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig
from ovss_core.errors import ModelError
from ovss_core.feature_purification.mitigation import OutlierMitigation
from tests.oracles import attention_outliers, balanced, repair
from tests.tiny import (
    enliven,
    random_windows,
    register_tiny_models,
    slow_tower,
    tiny_clip,
    tiny_encoder,
    tiny_tower,
)

ARCHITECTURES = ["tiny-ViT-8", "tiny-ViT-8-quickgelu", "tiny-ViT-16", "tiny-ViT-8-layer-scale"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_class_features_equal_open_clips_encode_image(name: str) -> None:
    model = tiny_clip(name).model
    windows = random_windows(3, *model.visual.image_size)
    ours = ImageEncoder(model.visual).class_features(windows)
    assert torch.allclose(ours, model.encode_image(windows), atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layers_tokens_equal_open_clips_intermediates(name: str) -> None:
    model = tiny_clip(name).model
    windows = random_windows(2, *model.visual.image_size)
    expected = model.visual.forward_intermediates(windows, output_fmt="NLC", output_extra_tokens=True)
    encoder = ImageEncoder(model.visual)
    trace = encoder.trace(windows, TraceRequest(hidden=frozenset(range(1, encoder.depth))))
    states = [*trace.hidden.values(), encoder.blocks[-1].forward(trace.tokens)]
    for ours, patches, prefix in zip(
        states, expected["image_intermediates"], expected["image_intermediates_prefix"], strict=True
    ):
        assert torch.allclose(ours, torch.cat([prefix, patches], 1), atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (24, 56), (40, 32), (8, 8), (8, 72)])
def test_windows_of_any_shape_equal_the_loop_written_tower(size: tuple[int, int]) -> None:
    tower, windows = tiny_tower(), random_windows(1, *size)
    encoder = ImageEncoder(tower)
    trace = encoder.trace(windows, TraceRequest(mean_attention=True))
    slow = slow_tower(tower)
    states, grid = slow.hidden(windows[0].double().numpy())
    assert trace.grid == grid
    np.testing.assert_allclose(trace.tokens[0].numpy(), states[3], atol=1e-4)
    features = encoder.project(encoder.blocks[-1].forward(trace.tokens))[0]
    np.testing.assert_allclose(features.numpy(), slow.project(states[4]), atol=1e-4)
    assert trace.mean_attention is not None
    expected = slow.mean_attention(windows[0].double().numpy())
    np.testing.assert_allclose(trace.mean_attention[0].numpy(), expected, atol=1e-5)


def test_pixels_beyond_the_last_whole_patch_do_not_matter() -> None:
    encoder, windows = tiny_encoder(), random_windows(1, 35, 39)
    cut = encoder.trace(windows[:, :, :32, :32], TraceRequest())
    trace = encoder.trace(windows, TraceRequest())
    assert trace.grid == (4, 4)
    assert torch.allclose(trace.tokens, cut.tokens, atol=1e-5)


def test_kept_attention_statistics_are_the_class_row_and_the_diagonal() -> None:
    tower, windows = tiny_tower(), random_windows(1, 32, 40)
    trace = ImageEncoder(tower).trace(windows, TraceRequest(attention_statistics=frozenset({2})))
    slow = slow_tower(tower)
    mean = np.mean(slow.attention(2, slow.hidden(windows[0].double().numpy())[0][1]), 0)
    np.testing.assert_allclose(trace.class_attention[2][0].numpy(), mean[0, 1:], atol=1e-6)
    np.testing.assert_allclose(trace.self_attention[2][0].numpy(), np.diag(mean)[1:], atol=1e-6)


@pytest.mark.parametrize("repairs", [True, False])
@pytest.mark.parametrize("start", [1, 3])
def test_filtered_attention_and_repair_follow_the_papers_equations(repairs: bool, start: int) -> None:
    tower, windows = tiny_tower(), random_windows(1, 40, 32)
    trace = ImageEncoder(tower).trace(
        windows, TraceRequest(observer=OutlierMitigation(1.5, repair=repairs, integrate_from=start))
    )
    slow = slow_tower(tower)
    tokens, grid = slow.embed(windows[0].double().numpy())
    total, found = np.zeros((20, 20)), 0
    for layer in range(1, 4):
        mean = np.mean(slow.attention(layer, tokens), 0)
        outliers = attention_outliers(mean[0, 1:], np.diag(mean)[1:], 1.5)
        found += len(outliers)
        tokens = slow.block(layer, tokens)
        if repairs:
            tokens = np.concatenate([tokens[:1], repair(tokens[1:], outliers, grid)])
        mean[:, [1 + index for index in outliers]] = 0
        total += mean[1:, 1:] * (layer >= start)
    assert found > 0, "the towers of these tests must have outliers"
    assert trace.observed.filtered_attention is not None
    np.testing.assert_allclose(trace.tokens[0].numpy(), tokens, atol=2e-4)
    np.testing.assert_allclose(trace.observed.filtered_attention[0].numpy(), total, atol=1e-5)
    assert np.isfinite(balanced(total, 1)).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_low_precision_runs_and_stays_near_float32(dtype: torch.dtype, tolerance: float) -> None:
    windows = random_windows(2, 32, 40)
    request = TraceRequest(mean_attention=True, hidden_sum=frozenset({1, 2}))
    reference = tiny_encoder()
    low = ImageEncoder(tiny_tower().to(dtype))
    expected, trace = reference.trace(windows, request), low.trace(windows, request)
    assert trace.tokens.dtype == low.dtype == dtype
    assert trace.mean_attention is not None
    assert expected.mean_attention is not None
    assert trace.mean_attention.dtype == torch.float32
    assert (trace.mean_attention - expected.mean_attention).abs().max() < tolerance
    ours, theirs = low.class_features(windows).float(), reference.class_features(windows)
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() > 1 - tolerance


def test_a_batch_of_windows_equals_the_windows_one_by_one() -> None:
    encoder, windows = tiny_encoder(), random_windows(4, 32, 48)
    request = TraceRequest(mean_attention=True, observer=OutlierMitigation(1.0, integrate_from=1))
    batch = encoder.trace(windows, request)
    for index, window in enumerate(windows):
        single = encoder.trace(window[None], request)
        assert torch.allclose(batch.tokens[index], single.tokens[0], atol=1e-4)
        assert torch.equal(batch.observed.outliers[3][index], single.observed.outliers[3][0])


def test_a_tower_without_class_pooling_is_refused() -> None:
    for name in ("tiny-ViT-8-attention-pool", "tiny-ViT-8-average-pool"):
        register_tiny_models()
        with pytest.raises(ModelError, match="not by its class token; choose an open_clip model"):
            ImageEncoder(open_clip.create_model(name).visual)


def test_resnet_and_timm_towers_are_refused_whoever_builds_them() -> None:
    register_tiny_models()
    with pytest.raises(ModelError, match=r"ModifiedResNet.*need a ViT with a class token"):
        ImageEncoder(open_clip.create_model("tiny-RN").visual)
    with pytest.raises(ModelError, match="TimmModel"):
        ImageEncoder(open_clip.create_model("tiny-timm").visual)


@pytest.mark.parametrize("name", ["RN50", "tiny-RN"])
def test_a_resnet_is_refused_before_anything_is_downloaded(name: str) -> None:
    register_tiny_models()
    with pytest.raises(ModelError, match=r"ResNet.*choose a ViT such as ViT-B-16"):
        load_clip(ModelConfig(name, "openai"))


@pytest.mark.parametrize("name", ["convnext_base_w", "ViTamin-B", "MobileCLIP-S1", "tiny-timm"])
def test_a_timm_tower_that_is_no_plain_vit_is_refused_before_anything_is_downloaded(name: str) -> None:
    register_tiny_models()
    with pytest.raises(ModelError, match=r"timm image tower.*choose a plain ViT"):
        load_clip(ModelConfig(name, "webli"))


def test_blocks_that_differ_from_clips_are_refused() -> None:
    tower = VisionTransformer(32, 8, 32, 2, 2, 4.0, output_dim=24, block_type="custom", qk_norm=True)
    with pytest.raises(ModelError, match="differ from CLIP's"):
        ImageEncoder(tower)


def test_oblong_patches_are_refused() -> None:
    tower = VisionTransformer((32, 32), (8, 16), 32, 2, 2, 4.0, output_dim=24)
    enliven(tower, 0)
    with pytest.raises(ModelError, match="not square"):
        ImageEncoder(tower)


def test_a_tower_of_a_single_block_is_refused() -> None:
    with pytest.raises(ModelError, match="single block"):
        tiny_encoder(depth=1)
