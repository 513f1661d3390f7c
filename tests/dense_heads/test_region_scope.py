import numpy as np
import pytest
import torch
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, WindowRegions
from ovss_core.config import PearlConfig, RfClipConfig, SfpConfig
from ovss_core.dense_heads import HEADS, DenseHead, HeadOptions, build_head
from ovss_core.dense_heads.region_scope import keep_visible, patch_scope, token_scope
from ovss_core.head_names import proxy_hosts, scope_hosts
from tests import oracles
from tests.tiny import random_windows, slow_tower, tiny_encoder, tiny_tower
from tests.tiny_towers import ROTARY, tiny_proxy_tower

SCOPED = sorted(scope_hosts())
PLAIN = [host for host in SCOPED if host not in proxy_hosts()]


SETTINGS = {"rfclip": RfClipConfig((1, 2)), "pearl": PearlConfig("svd")}


def traced(encoder: ImageEncoder, head: DenseHead, windows: Tensor) -> EncoderTrace:
    request = head.request(encoder.depth)
    trace = encoder.trace(windows, request)
    if request.proxy:
        proxy = tiny_proxy_tower(ROTARY)
        fine = torch.nn.functional.interpolate(windows, scale_factor=2.0)
        trace.proxy = proxy.features(fine, request.proxy)
    return trace


def moved(trace: EncoderTrace, tokens: Tensor, amount: float) -> EncoderTrace:
    """Change some tokens in all that the last blocks' values are read from."""
    step = amount * torch.randn(
        len(tokens), trace.tokens.shape[2], generator=torch.Generator().manual_seed(1)
    )
    trace.tokens = trace.tokens.index_add(1, tokens, step[None])
    trace.hidden = {layer: hidden.index_add(1, tokens, step[None]) for layer, hidden in trace.hidden.items()}
    if trace.hidden_sum is not None:
        trace.hidden_sum = trace.hidden_sum.index_add(1, tokens, step[None])
    return trace


def features_of(host: str, ids: Tensor | None, windows: Tensor, options: HeadOptions | None = None) -> Tensor:
    encoder, head = (
        tiny_encoder(),
        build_head(host, options or HeadOptions(scoped=True, settings=SETTINGS.get(host))),
    )
    trace = traced(encoder, head, windows)
    trace.regions = None if ids is None else WindowRegions(ids, int(ids.max()))
    return head.features(encoder, trace)


def test_only_a_head_without_attention_cannot_keep_patches_inside_their_region() -> None:
    assert set(HEADS) - set(SCOPED) == {"maskclip"}


@pytest.mark.parametrize("host", [host for host in SCOPED if host != "corrclip"])
@pytest.mark.parametrize("number", [0, 1])
def test_one_region_everywhere_or_none_is_as_without_regions(host: str, number: int) -> None:
    windows = random_windows(2, 40, 56)
    ids = torch.full((2, 35), number)
    found, expected = features_of(host, ids, windows), features_of(host, None, windows)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("host", ["clip", "sclip", "clearclip", "naclip", "cliptrase"])
def test_a_scoped_head_equals_its_loop_written_form(host: str) -> None:
    tower, windows = tiny_tower(), random_windows(1, 24, 40)
    ids = torch.tensor([[0, 1, 1, 2, 2, 0, 1, 3, 2, 2, 3, 3, 3, 1, 0]])
    encoder, head, slow = ImageEncoder(tower), build_head(host), slow_tower(tower)
    trace = encoder.trace(windows, head.request(4))
    trace.regions = WindowRegions(ids, 3)
    states, grid = slow.hidden(windows[0].double().numpy())
    tokens, regions = states[3], [-1, *ids[0].tolist()]
    query, key, value = slow.query_key_value(4, tokens)
    heads = []
    for q, k, v in zip(query, key, value, strict=True):
        pairs = {
            **{"clip": [(q, k)], "sclip": [(q, q), (k, k)], "clearclip": [(q, q)], "naclip": [(k, k)]},
            "cliptrase": [(q, q), (k, k), (v, v)],
        }[host]
        bias = oracles.neighborhood(grid) if host == "naclip" else np.zeros((16, 16))
        rows = []
        for i in range(16):
            seen = [j for j in range(16) if j == 0 or i == 0 or regions[i] in (0, regions[j])]
            row = np.zeros(v.shape[1])
            for first, second in pairs:
                logits = np.array([slow.scale * first[i] @ second[j] + bias[i, j] for j in seen])
                row += oracles.softmax(logits) @ v[seen]
            rows.append(row)
        heads.append(np.array(rows))
    result = slow.output(4, heads)
    if host in ("clip", "sclip", "cliptrase"):
        result = tokens + result
        result = result + slow.feed_forward(4, result)
    expected = slow.project(result)[1:]
    np.testing.assert_allclose(head.features(encoder, trace)[0].numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("host", SCOPED)
def test_a_scoped_batch_equals_its_windows_one_by_one(host: str) -> None:
    windows = random_windows(3, 40, 56)
    ids = torch.randint(0, 5, (3, 35), generator=torch.Generator().manual_seed(2))
    whole = features_of(host, ids, windows)
    singles = [features_of(host, ids[[row]], windows[[row]]) for row in range(3)]
    torch.testing.assert_close(whole, torch.cat(singles), atol=2e-4, rtol=0)
    assert not torch.allclose(whole, features_of(host, None, windows), atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        SfpConfig("paper"),
        SfpConfig("paper", False, False, False),
        SfpConfig("released", attention_enhancement=False),
    ],
)
def test_every_form_of_sfp_keeps_to_regions(settings: SfpConfig) -> None:
    windows = random_windows(2, 40, 56)
    options = HeadOptions(settings=settings, scoped=True)
    ids = torch.randint(1, 5, (2, 35), generator=torch.Generator().manual_seed(3))
    scoped, free = (features_of("sfp", given, windows, options) for given in (ids, None))
    assert scoped.isfinite().all()
    assert not torch.allclose(scoped, free, atol=1e-3)
    same = features_of("sfp", torch.ones_like(ids), windows, options)
    torch.testing.assert_close(same, free, atol=2e-4, rtol=0)


@pytest.mark.parametrize("host", ["clipsurgery", "itaclip", "resclip", "cliper"])
def test_what_lies_in_other_regions_is_not_read(host: str) -> None:
    """The last block's values come from patches of the same region alone: those of others may be anything."""
    encoder, windows = tiny_encoder(), random_windows(1, 40, 56)
    head = build_head(host, HeadOptions(scoped=True, settings=SETTINGS.get(host)))
    ids = torch.tensor([[1] * 14 + [2] * 21])
    found = []
    for other in (0.0, 1.0):
        trace = traced(encoder, head, windows)
        trace.regions = WindowRegions(ids, 2)
        features = head.features(encoder, moved(trace, 1 + torch.arange(14, 35), other))
        found.append(features[:, :14])
    torch.testing.assert_close(found[0], found[1], atol=2e-4, rtol=0)


def test_patches_of_no_region_see_everything_and_are_seen_by_their_own_kind() -> None:
    trace = EncoderTrace((1, 4), torch.zeros(1, 5, 3), regions=WindowRegions(torch.tensor([[0, 1, 1, 2]]), 2))
    seen = patch_scope(trace)
    assert seen is not None
    assert seen[0].tolist() == [
        [True, True, True, True],
        [False, True, True, False],
        [False, True, True, False],
        [False, False, False, True],
    ]
    tokens = token_scope(trace)
    assert tokens is not None
    assert tokens.shape == (1, 1, 5, 5)
    assert tokens[0, 0, 0].all()
    assert tokens[0, 0, :, 0].all()


def test_what_is_left_of_a_row_sums_to_one_again() -> None:
    attention = torch.tensor([[[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.2, 0.8, 0.0]]])
    visible = torch.tensor([[[True, True, False], [True, True, False], [False, False, True]]])
    found = keep_visible(attention, visible)
    expected = torch.tensor([[[2 / 3, 1 / 3, 0], [0, 1, 0], [0, 0, 1]]])
    torch.testing.assert_close(found, expected)
