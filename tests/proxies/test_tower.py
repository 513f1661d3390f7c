from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import vision_transformer
from torch import Tensor

from ovss_core.errors import ModelError
from ovss_core.proxies.positions import fit_positions
from ovss_core.proxies.tower import ProxyTower
from tests import oracles
from tests.tiny import random_windows
from tests.tiny_towers import DINO, POSITIONS, RADIO, REGISTERS, ROTARY, tiny_model, tiny_proxy_tower

SIZES = [(112, 112), (112, 224), (224, 112), (16, 48)]


def tokens_of(tower: ProxyTower, windows: Tensor) -> Tensor:
    return tower.features(windows, {"tokens"}).vectors["tokens"]


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("name", [REGISTERS, ROTARY])
def test_tokens_are_those_of_timm_where_timm_fits_positions_as_the_original(
    name: str, size: tuple[int, int]
) -> None:
    own = tiny_model(name, **({"dynamic_img_size": True} if name == REGISTERS else {}))
    tower, windows = ProxyTower(tiny_model(name), POSITIONS[name]), random_windows(2, *size)
    expected = own.forward_features(windows)[:, own.num_prefix_tokens :]
    torch.testing.assert_close(tokens_of(tower, windows), expected, atol=2e-5, rtol=0)


def test_tokens_of_dino_are_those_of_timm_on_the_grid_it_was_trained_on() -> None:
    model, windows = tiny_model(DINO), random_windows(3, 56, 56)
    expected = model.forward_features(windows)[:, 1:]
    torch.testing.assert_close(tokens_of(tiny_proxy_tower(DINO), windows), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (3, 9), (1, 5)])
def test_positions_of_dino_follow_the_originals_rule_off_the_base_grid(grid: tuple[int, int]) -> None:
    table = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
    expected = oracles.resample_table(table.double().numpy(), (7, 7), grid)
    fitted = fit_positions(table, 1, (7, 7), grid, "scale")
    np.testing.assert_allclose(fitted.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (64, 128), (96, 32), (256, 256)])
def test_positions_of_radio_are_cut_from_a_square_as_timm_cuts_them_for_a_fixed_size(
    size: tuple[int, int], aligned: bool
) -> None:
    table = torch.randn(1, 256, 6, generator=torch.Generator().manual_seed(2))
    grid = size[0] // 16, size[1] // 16
    state = {
        "radio_model.model.patch_generator.pos_embed": table,
        "radio_model.model.patch_generator.embedder.weight": torch.zeros(6, 768),
    }
    model = vision_transformer.VisionTransformer(
        img_size=size, patch_size=16, embed_dim=6, depth=1, num_heads=1, no_embed_class=True
    )
    expected = vision_transformer._convert_radio(state, model, "bilinear", False, aligned or None)[
        "pos_embed"
    ]
    fitted = fit_positions(table[0], 0, (16, 16), grid, "aligned_corner" if aligned else "corner")
    torch.testing.assert_close(fitted, expected[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", list(POSITIONS))
def test_a_batch_equals_its_windows_one_by_one_on_any_grid(name: str, size: tuple[int, int]) -> None:
    tower, windows = tiny_proxy_tower(name), random_windows(3, *size)
    whole = tower.features(windows, {"tokens", "query_plus_key"})
    rows, columns = size[0] // tower.patch_size, size[1] // tower.patch_size
    assert whole.grid == (rows, columns)
    for which, vectors in whole.vectors.items():
        assert vectors.shape[:2] == (3, rows * columns)
        singles = [tower.features(window[None], {which}).vectors[which] for window in windows]
        torch.testing.assert_close(vectors, torch.cat(singles), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", list(POSITIONS))
def test_query_plus_key_is_read_from_the_last_block_before_it_attends(name: str) -> None:
    model, windows = tiny_model(name), random_windows(1, 64, 64)
    seen: list[Any] = []
    hook = model.blocks[-1].attn.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    tower = ProxyTower(model, POSITIONS[name])
    tower.features(windows, {"tokens"})
    hook.remove()
    attention, normed = model.blocks[-1].attn, seen[0]
    weight, width = attention.qkv.weight, normed.shape[-1]
    bias = attention.qkv.bias if attention.qkv.bias is not None else torch.zeros(3 * width)
    query = normed @ weight[:width].T + bias[:width]
    key = normed @ weight[width : 2 * width].T + bias[width : 2 * width]
    found = tower.features(windows, {"query_plus_key"}).vectors["query_plus_key"]
    torch.testing.assert_close(found, (query + key)[:, tower.prefix :], atol=2e-5, rtol=0)


def test_what_fills_no_patch_at_the_edge_is_not_seen() -> None:
    tower, windows = tiny_proxy_tower(REGISTERS), random_windows(1, 112, 126)
    wider = torch.cat([windows, torch.full((1, 3, 112, 13), 5.0)], 3)
    assert torch.equal(tokens_of(tower, wider), tokens_of(tower, windows))


def test_a_scale_that_does_not_divide_the_patches_is_refused() -> None:
    with pytest.raises(ModelError, match=r"proxy.scale 3 does not divide .* patches of 8 pixels"):
        ProxyTower(tiny_model(DINO), "scale", 3)


def test_a_tower_that_is_no_plain_vit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"the second tower is a ResNet, which has no patch_embed"):
        ProxyTower(timm.create_model("resnet10t", pretrained=False), "scale")
    normed = vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=1, qk_norm=True
    )
    with pytest.raises(ModelError, match="differ from a plain ViT's"):
        ProxyTower(normed, "scale")


def test_pixels_are_normalized_as_the_weights_say() -> None:
    assert tiny_proxy_tower(RADIO).normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
