import numpy as np
import pytest
import torch
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, ProxyFeatures, TraceRequest, WindowRegions
from ovss_core.config import CorrClipConfig, HeadSettings, ProxyClipConfig, RfClipConfig
from ovss_core.dense_heads import HEADS, HeadOptions, build_head
from ovss_core.dense_heads.proxyclip import proxy_attention
from ovss_core.dense_heads.region_scope import merge_regions
from ovss_core.errors import ConfigError
from ovss_core.head_names import clip_hosts, proxy_hosts
from ovss_core.proxies.tower import ProxyTower
from tests import oracles_proxies as oracles
from tests.tiny import random_windows, slow_tower, tiny_encoder, tiny_tower
from tests.tiny_towers import DINO, POSITIONS, tiny_proxy_tower

PROXY_HOSTS = sorted(proxy_hosts())
SIZES = [(32, 32), (24, 40), (16, 48)]


def traced(encoder: ImageEncoder, proxy: ProxyTower, windows: Tensor, request: TraceRequest) -> EncoderTrace:
    trace = encoder.trace(windows, request)
    trace.proxy = proxy.features(windows, request.proxy)
    return trace


def features_of(
    encoder: ImageEncoder,
    proxy: ProxyTower,
    host: str,
    windows: Tensor,
    settings: HeadSettings | None = None,
) -> Tensor:
    head = build_head(host, HeadOptions(settings=settings))
    return head.features(encoder, traced(encoder, proxy, windows, head.request(encoder.depth)))


def test_hosts_that_need_a_second_tower_are_those_that_ask_for_its_vectors() -> None:
    measured = {"rfclip": RfClipConfig(channels=())}
    options = {name: HeadOptions(settings=measured.get(name)) for name in HEADS}
    asking = {name for name in HEADS if build_head(name, options[name]).request(12).proxy}
    assert asking == set(proxy_hosts())
    assert set(HEADS) - asking == set(clip_hosts())


@pytest.mark.parametrize("beta", [1.2, 0.7])
@pytest.mark.parametrize("size", SIZES)
def test_proxyclip_equals_its_loop_written_form(size: tuple[int, int], beta: float) -> None:
    tower, proxy, windows = tiny_tower(patch=16, image=48), tiny_proxy_tower(DINO), random_windows(1, *size)
    encoder, settings = ImageEncoder(tower), ProxyClipConfig(beta, 4.0)
    slow = slow_tower(tower)
    vectors = proxy.features(windows, {"tokens"}).vectors["tokens"][0].double().numpy()
    attention = oracles.proxyclip_attention(vectors, beta, 4.0)
    states, grid = slow.hidden(windows[0].double().numpy())
    fine = size[0] // 8, size[1] // 8
    expected = slow.project(oracles.gathered(slow, states[-2], attention, (grid, fine)))
    found = features_of(encoder, proxy, "proxyclip", windows, settings)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=2e-4)


def drawn_regions(windows: int, patches: int, most: int, seed: int = 0) -> WindowRegions:
    """Draw a region for each patch, none for some."""
    drawn = torch.randint(0, most + 1, (windows, patches), generator=torch.Generator().manual_seed(seed))
    return WindowRegions(drawn, most)


@pytest.mark.parametrize("most", [0, 1, 5])
@pytest.mark.parametrize("size", SIZES)
def test_corrclip_equals_its_loop_written_form(size: tuple[int, int], most: int) -> None:
    tower, proxy, windows = tiny_tower(patch=16, image=48), tiny_proxy_tower(DINO), random_windows(1, *size)
    encoder, head = ImageEncoder(tower), build_head("corrclip", HeadOptions(scoped=most > 0))
    trace = traced(encoder, proxy, windows, head.request(encoder.depth))
    grid = trace.proxy_features().grid
    regions = drawn_regions(1, grid[0] * grid[1], most)
    trace.regions = regions if most else None
    vectors = trace.proxy_features().vectors["query_plus_key"][0].double().numpy()
    expected = oracles.corrclip(
        slow_tower(tower), windows[0].double().numpy(), vectors, regions.ids[0].tolist(), grid
    )
    np.testing.assert_allclose(head.features(encoder, trace)[0].numpy(), expected, atol=5e-4)


def test_without_regions_corrclip_is_what_it_is_where_no_patch_lies_in_one() -> None:
    encoder, proxy, windows = tiny_encoder(), tiny_proxy_tower(), random_windows(2, 32, 48)
    head = build_head("corrclip", HeadOptions(scoped=True))
    trace = traced(encoder, proxy, windows, head.request(4))
    expected = head.features(encoder, trace)
    trace.regions = WindowRegions(torch.zeros(2, 24, dtype=torch.int64), 3)
    torch.testing.assert_close(head.features(encoder, trace), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("distance", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("most", [1, 2, 6, 17])
def test_regions_that_look_alike_are_merged_in_every_window_of_a_batch(most: int, distance: float) -> None:
    vectors = torch.randn(4, 40, 6, generator=torch.Generator().manual_seed(most))
    regions = drawn_regions(4, 40, most)
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    merged = merge_regions(unit, regions.ids, most, distance)
    for window in range(4):
        expected = oracles.merged_regions(
            vectors[window].double().numpy(), regions.ids[window].tolist(), distance
        )
        assert merged[window].tolist() == expected


def test_numbers_of_regions_that_a_window_lacks_change_nothing() -> None:
    encoder, proxy, windows = tiny_encoder(), tiny_proxy_tower(), random_windows(2, 32, 32)
    head = build_head("corrclip", HeadOptions(scoped=True))
    trace = traced(encoder, proxy, windows, head.request(4))
    trace.regions = drawn_regions(2, 16, 3)
    expected = head.features(encoder, trace)
    trace.regions = WindowRegions(trace.regions.ids * 2, 9)
    torch.testing.assert_close(head.features(encoder, trace), expected, atol=1e-5, rtol=0)


def test_parts_of_corrclip_can_be_left_out() -> None:
    encoder, proxy, windows = tiny_encoder(), tiny_proxy_tower(), random_windows(1, 32, 32)
    whole = features_of(encoder, proxy, "corrclip", windows)
    plain = features_of(encoder, proxy, "corrclip", windows, CorrClipConfig(spatial=False, semantic_weight=0))
    token = encoder.project(encoder.blocks[-1].class_token(encoder.trace(windows, TraceRequest()).tokens))
    semantic = features_of(encoder, proxy, "corrclip", windows, CorrClipConfig(spatial=False))
    torch.testing.assert_close(semantic, plain + 0.5 * token, atol=1e-5, rtol=0)
    assert not torch.allclose(whole, semantic)
    late = build_head("corrclip", HeadOptions(settings=CorrClipConfig(spatial_start=9)))
    assert late.request(12).hidden == {9, 10}
    assert build_head("corrclip").request(12).hidden == {6, 7, 8, 9, 10}
    assert build_head("corrclip").request(2).hidden == {1}


@pytest.mark.parametrize("name", list(POSITIONS))
@pytest.mark.parametrize("host", PROXY_HOSTS)
@pytest.mark.parametrize("size", SIZES)
def test_a_batch_equals_its_windows_one_by_one_on_the_towers_own_grid(
    host: str, name: str, size: tuple[int, int]
) -> None:
    encoder, proxy, windows = tiny_encoder(), tiny_proxy_tower(name), random_windows(3, *size)
    found = features_of(encoder, proxy, host, windows)
    patch = proxy.patch_size
    assert found.shape == (3, (size[0] // patch) * (size[1] // patch), 24)
    singles = [features_of(encoder, proxy, host, window[None]) for window in windows]
    torch.testing.assert_close(found, torch.cat(singles), atol=1e-4, rtol=0)


def test_rows_that_the_released_code_leaves_empty_see_their_own_patch() -> None:
    base = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0))
    vectors = base + 0.01 * torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(1))
    vectors[1, 4] = 0  # a patch without any direction
    attention = proxy_attention(vectors, beta=1.2, gamma=3.0)
    assert attention.isfinite().all()
    assert torch.equal(attention[0], torch.eye(30))
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 30))


def test_attention_is_shared_out_in_parts_without_changing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, proxy, windows = tiny_encoder(), tiny_proxy_tower(), random_windows(5, 32, 48)
    whole = {host: features_of(encoder, proxy, host, windows) for host in PROXY_HOSTS}
    monkeypatch.setattr("ovss_core.dense_heads.proxy_attention.ENTRIES_AT_ONCE", 2 * 24**2)
    for host, expected in whole.items():
        torch.testing.assert_close(features_of(encoder, proxy, host, windows), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("host", PROXY_HOSTS)
def test_a_trace_without_a_second_tower_is_refused_with_what_to_give(host: str) -> None:
    encoder, head = tiny_encoder(), build_head(host)
    with pytest.raises(ConfigError, match="needs a second tower; give --proxy"):
        head.features(encoder, encoder.trace(random_windows(1, 32, 32), head.request(4)))


def test_a_uniform_tower_averages_all_values() -> None:
    encoder, windows = tiny_encoder(), random_windows(1, 32, 32)
    head = build_head("proxyclip")
    trace = encoder.trace(windows, head.request(4))
    trace.proxy = ProxyFeatures(trace.grid, {"tokens": torch.ones(1, 16, 8)})
    block = encoder.blocks[-1]
    settings = HeadOptions(settings=ProxyClipConfig(beta=1.0))
    value = block.value(trace.tokens)[:, :, 1:].mean(2, keepdim=True)
    expected = encoder.project(block.output(value)).expand(1, 16, -1)
    found = build_head("proxyclip", settings).features(encoder, trace)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
