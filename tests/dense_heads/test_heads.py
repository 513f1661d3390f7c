import numpy as np
import pytest
import torch
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.config import HeadSettings, RfClipConfig
from ovss_core.dense_heads import HeadOptions, build_head
from ovss_core.dense_heads.similarity_guided import SimilarityLayers
from ovss_core.head_names import clip_hosts
from tests import oracles
from tests.tiny import random_windows, slow_tower, tiny_encoder, tiny_tower

HOSTS = [
    *(
        "clearclip",
        "clip",
        "cliper",
        "clipsurgery",
        "cliptrase",
        "gem",
        "itaclip",
        "maskclip",
        "naclip",
        "pearl",
    ),
    *("resclip", "rfclip", "scclip", "sclip", "sfp"),
]
# no checkpoint: there is none whose channels could be known
SETTINGS: dict[str, HeadSettings] = {"rfclip": RfClipConfig((3, 17), 1.5)}
SIZES = [(32, 32), (24, 40), (8, 48)]
# with 31 patches or fewer all others are neighbors, the two farthest have equal local outlier factors, and
# rounding decides which of them scclip repairs
TIE_FREE = (40, 56)


def _features(encoder: ImageEncoder, host: str, windows: Tensor, purified: bool = False) -> Tensor:
    head = build_head(host, HeadOptions(purified=purified, settings=SETTINGS.get(host)))
    return head.features(encoder, encoder.trace(windows, head.request(encoder.depth)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("purified", [False, True])
@pytest.mark.parametrize("host", ["clip", "maskclip", "sclip", "clearclip", "naclip"])
def test_a_head_of_the_last_block_equals_its_loop_written_form(
    host: str, purified: bool, size: tuple[int, int]
) -> None:
    tower, windows = tiny_tower(), random_windows(1, *size)
    expected = oracles.last_block_head(slow_tower(tower), windows[0].double().numpy(), host, purified)
    features = _features(ImageEncoder(tower), host, windows, purified)
    np.testing.assert_allclose(features[0].numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [4, 5])
def test_gem_equals_its_loop_written_form(size: tuple[int, int], depth: int) -> None:
    tower, windows = tiny_tower(depth=depth), random_windows(1, *size)
    encoder = ImageEncoder(tower)
    embedded = encoder.embed(windows, "antialias")[0].double().numpy()
    features = _features(encoder, "gem", windows)
    np.testing.assert_allclose(features[0].numpy(), oracles.gem(slow_tower(tower), embedded), atol=2e-4)


@pytest.mark.parametrize(
    ("host", "size"),
    [("sfp", (32, 32)), ("sfp", (24, 40)), ("sfp", (8, 48)), ("scclip", (48, 48)), ("scclip", (40, 56))],
)
def test_a_similarity_guided_head_equals_its_loop_written_form(host: str, size: tuple[int, int]) -> None:
    tower, windows = tiny_tower(depth=12), random_windows(1, *size)
    expected = oracles.guided_head(
        slow_tower(tower), windows[0].double().numpy(), host, layers=(9, 4), summed=range(4, 11)
    )
    features = _features(ImageEncoder(tower), host, windows)
    np.testing.assert_allclose(features[0].numpy(), expected, atol=5e-4)


@pytest.mark.parametrize("host", HOSTS)
def test_a_batch_equals_its_windows_one_by_one(host: str) -> None:
    encoder, windows = tiny_encoder(), random_windows(4, *TIE_FREE)
    singles = torch.cat([_features(encoder, host, window[None]) for window in windows])
    assert torch.allclose(_features(encoder, host, windows), singles, atol=1e-4)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("purified", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (16, 80)])
def test_features_have_one_row_a_patch_on_any_grid(host: str, purified: bool, size: tuple[int, int]) -> None:
    encoder, windows = tiny_encoder(), random_windows(2, *size)
    features = _features(encoder, host, windows, purified)
    assert features.shape == (2, size[0] * size[1] // 64, 24)
    assert features.isfinite().all()


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("axis", [1, 2])
def test_mirroring_the_window_mirrors_the_features_of_a_mirrored_tower(host: str, axis: int) -> None:
    tower, windows = tiny_tower(image=48), random_windows(2, 48, 48)
    expected = _features(ImageEncoder(tower), host, windows).view(2, 6, 6, 24).flip(axis).flatten(1, 2)
    with torch.no_grad():
        tower.conv1.weight.copy_(tower.conv1.weight.flip(axis + 1))
        lattice = tower.positional_embedding[1:].view(6, 6, -1).flip(axis - 1)
        tower.positional_embedding[1:] = lattice.reshape(36, -1)
    mirrored = _features(ImageEncoder(tower), host, windows.flip(axis + 1))
    assert torch.allclose(mirrored, expected, atol=2e-4)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("dtype", "agreement"), [(torch.bfloat16, 0.97), (torch.float16, 0.999)])
def test_low_precision_stays_near_float32(host: str, dtype: torch.dtype, agreement: float) -> None:
    windows = random_windows(2, 32, 40)
    low = _features(ImageEncoder(tiny_tower().to(dtype)), host, windows)
    cosine = torch.nn.functional.cosine_similarity(
        low.float(), _features(tiny_encoder(), host, windows), dim=-1
    )
    assert low.dtype == dtype
    assert cosine.median() > agreement


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("depth", [2, 3, 12])
def test_shallow_and_deep_towers_work_alike(host: str, depth: int) -> None:
    features = _features(tiny_encoder(depth=depth), host, random_windows(1, 32, 32))
    assert features.isfinite().all()


def test_a_request_for_mean_attention_changes_no_heads_features() -> None:
    encoder, windows = tiny_encoder(), random_windows(2, *TIE_FREE)
    for host in HOSTS:
        head = build_head(host, HeadOptions(settings=SETTINGS.get(host)))
        request = head.request(encoder.depth)
        with_attention = head.features(encoder, encoder.trace(windows, request.with_mean_attention()))
        assert torch.allclose(with_attention, _features(encoder, host, windows), atol=2e-4)


def test_the_layers_of_twelve_blocks_are_the_papers() -> None:
    layers = SimilarityLayers.of(12)
    assert (layers.semantic, layers.spatial, layers.summed) == (9, 4, frozenset(range(4, 11)))
    for depth in range(2, 49):
        other = SimilarityLayers.of(depth)
        assert 1 <= other.spatial <= other.semantic <= depth - 1


def test_all_hosts_are_listed() -> None:
    assert clip_hosts() == HOSTS
