"""What only a GPU shows; run with `make test-gpu`."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ovss_core.api import OpenVocabSegmenter
from ovss_core.class_purification.regions import box_union
from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig
from ovss_core.dense_heads import HeadOptions, build_head
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.trial import choose_product
from ovss_core.feature_purification.mitigation import repair_tokens
from ovss_core.feature_purification.outliers import attention_outliers
from ovss_core.feature_purification.similarity import Aggregation, guide_attention
from ovss_core.kernels import products
from ovss_core.kernels.attention import attend_with_mean
from ovss_core.kernels.class_sums import add_class_sums
from ovss_core.kernels.norms import add_norm
from ovss_core.kernels.products import Tile
from ovss_core.vocabulary import Vocabulary, VocabularyClass
from pipelines.demonstration.scenes import render_scene

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]

SETTINGS = [
    ("clearclip", PurificationConfig()),
    ("sfp", PurificationConfig()),
    ("sfp", PurificationConfig(method="none")),
    ("sclip", PurificationConfig(variant="filter")),
    ("clearclip", PurificationConfig(variant="released")),
    ("maskclip", PurificationConfig(variant="paper")),
]
NEAR_TIES = 2e-3
"""Share of pixels whose two best classes lie closer than float32 sums in another order tell apart."""


def _pictures(count: int, size: int = 336) -> list[np.ndarray]:
    return [render_scene(seed, size).image for seed in range(count)]


def _words() -> EncodedVocabulary:
    rows = torch.nn.functional.normalize(torch.randn(1, 512), dim=-1)
    return EncodedVocabulary(Vocabulary((VocabularyClass("a", ("a",)),)), rows, rows, rows, "random")


def _segmenter(host: str, purification: PurificationConfig, device: str) -> OpenVocabSegmenter:
    config = SegmenterConfig(host=host, purification=purification)
    return OpenVocabSegmenter.from_pretrained("demo", vocabulary="demo", config=config, device=device)


@pytest.mark.parametrize(("host", "purification"), SETTINGS)
def test_a_gpu_labels_as_a_cpu_does(host: str, purification: PurificationConfig) -> None:
    pictures = _pictures(6)
    ours, theirs = (
        _segmenter(host, purification, device).engine.segment(pictures) for device in ("cuda", "cpu")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert {entry.index for entry in one.kept} == {entry.index for entry in other.kept}
    different = sum(
        int((one.label_map != other.label_map).sum()) for one, other in zip(ours, theirs, strict=True)
    )
    assert different <= NEAR_TIES * sum(one.label_map.size for one in ours)


@pytest.mark.parametrize(("host", "purification"), SETTINGS[:4])
def test_nothing_waits_for_the_device_but_the_download(host: str, purification: PurificationConfig) -> None:
    engine, pictures = _segmenter(host, purification, "cuda").engine, _pictures(8)
    for _ in range(2):  # tables that are made once, and the room that the first wave teaches
        engine.segment(pictures)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.segment(pictures)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_too_little_room_is_made_good_by_counting() -> None:
    engine, pictures = _segmenter("clearclip", PurificationConfig(), "cuda").engine, _pictures(4)
    expected = engine.segment(pictures)
    assert engine.room is not None
    engine.room = replace(engine.room, classes=2, groups=1, boxes=1, regions=1, active=1, distractors=1)
    found = engine.segment(pictures)
    for one, other in zip(found, expected, strict=True):
        assert [entry.index for entry in one.kept] == [entry.index for entry in other.kept]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [50, 197, 577])
def test_the_attention_kernel_equals_the_plain_form(dtype: torch.dtype, tokens: int) -> None:
    packed = torch.randn(2, tokens, 3, 12, 64, device="cuda", dtype=dtype)
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    total = torch.ones(2, tokens - 1, tokens - 1, device="cuda")
    attended, mean = attend_with_mean(query, key, value, 0.125, total)
    wide = (query.double() @ key.double().mT * 0.125).softmax(-1)
    within = 1e-5 if dtype == torch.float32 else 1e-4
    assert mean is not None
    assert torch.allclose(mean.double(), wide.mean(1), atol=within)
    assert torch.allclose(total.double() - 1, wide.mean(1)[:, 1:, 1:], atol=within)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert torch.allclose(attended.double(), wide @ value.double(), atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [768, 1024, 200])
def test_the_kernel_of_norms_equals_torchs(dtype: torch.dtype, width: int) -> None:
    norm = nn.LayerNorm(width).to("cuda", dtype)
    norm.weight.normal_()
    norm.bias.normal_()
    tokens, added = torch.randn(2, 5, 198, width, device="cuda", dtype=dtype)
    total = torch.ones(5, 197, width, device="cuda", dtype=dtype)
    summed, normed = add_norm(tokens[:, 1:], added[:, :1].expand(5, 197, width), norm, total)
    expected = tokens[:, 1:] + added[:, :1]
    assert torch.equal(summed, expected)
    assert torch.equal(total, expected + 1)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    assert torch.allclose(normed, norm(expected), atol=tolerance, rtol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tile", products.TILES, ids=str)
@pytest.mark.parametrize("shape", [(16 * 197, 768, 3072), (1001, 200, 520)])
def test_the_product_with_quick_gelu_equals_the_plain_form(
    dtype: torch.dtype, tile: Tile, shape: tuple[int, int, int]
) -> None:
    from ovss_core.kernels.products_triton import launch_quick_gelu_product

    rows, width, hidden = shape
    tokens = torch.randn(rows, width, device="cuda", dtype=dtype)
    weight = torch.randn(hidden, width, device="cuda", dtype=dtype) / width**0.5
    bias = torch.randn(hidden, device="cuda", dtype=dtype)
    linear = tokens.double() @ weight.double().T + bias.double()
    expected = linear * torch.sigmoid(1.702 * linear)
    found = launch_quick_gelu_product(tokens, weight, bias, tile).double()
    assert torch.allclose(found, expected, atol=2e-2, rtol=1e-2)


def test_a_worker_chooses_how_it_multiplies_by_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: dict[object, Tile | None] = {}
    monkeypatch.setattr(products, "_chosen", chosen)
    model = ModelConfig("ViT-B-16-quickgelu", "random", "bfloat16")
    OpenVocabSegmenter.from_pretrained("demo", vocabulary="demo", device="cuda")
    assert not chosen  # float32 is the vendor's
    engine = SegmentationEngine(SegmenterConfig(model=model), load_clip(model), _words(), "cuda")
    choose_product(engine)
    [tile] = chosen.values()
    assert tile is None or tile in products.TILES


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [(14, 14), (24, 24), (7, 9)])
def test_the_kernels_of_sfp_equal_the_plain_forms(dtype: torch.dtype, grid: tuple[int, int]) -> None:
    count = grid[0] * grid[1]
    chance = torch.Generator().manual_seed(count)
    tokens = torch.randn(3, count + 1, 768, generator=chance) + torch.randn(3, 1, 768, generator=chance)
    patches = tokens.to("cuda", dtype)[:, 1:]
    attention, own = torch.rand(2, 3, count, generator=chance)
    outliers = attention_outliers(attention, own, 0.3, 10)
    assert torch.equal(attention_outliers(attention.cuda(), own.cuda(), 0.3, 10).cpu(), outliers)
    plain = patches.float().cpu()
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    repaired = repair_tokens(patches, outliers.cuda(), grid).float().cpu()
    assert torch.allclose(repaired, repair_tokens(plain, outliers, grid), atol=tolerance, rtol=tolerance)
    for before_cut in (True, False):
        weights, guided = guide_attention(patches, outliers.cuda(), grid, before_cut)
        expected, expected_guided = guide_attention(plain, outliers, grid, before_cut)
        # an entry on the edge of the cut may fall on either side, and its row is scaled anew
        wrong = (guided.float().cpu() - expected_guided).abs().mean() / expected_guided.abs().mean()
        assert wrong < 50 * tolerance if dtype == torch.float32 else wrong < 5 * tolerance
        averaged = weights.apply(patches).float().cpu()
        assert torch.allclose(averaged, expected.apply(plain), atol=tolerance)
    averaged = Aggregation.of(patches).apply(patches).float().cpu()
    assert torch.allclose(averaged, Aggregation.of(plain).apply(plain), atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("host", ["sfp", "scclip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_with_kernels_gives_the_features_of_a_cpu(host: str, dtype: torch.dtype) -> None:
    visual = load_clip(ModelConfig("demo")).model.visual
    windows = torch.randn(4, 3, *visual.image_size, generator=torch.Generator().manual_seed(0))
    head = build_head(host, HeadOptions(purified=True))

    def run(encoder: ImageEncoder) -> tuple[torch.Tensor, torch.Tensor]:
        request = head.request(encoder.depth).with_mean_attention()
        trace = encoder.trace(windows.to(encoder.device), request)
        assert trace.mean_attention is not None
        features = head.features(encoder, trace).float()
        return torch.nn.functional.normalize(features, dim=-1).cpu(), trace.mean_attention.cpu()

    expected, expected_mean = run(ImageEncoder(visual))
    found, mean = run(ImageEncoder(deepcopy(visual).to("cuda", dtype)))
    likeness = (found * expected).sum(-1)
    if dtype == torch.float32:
        assert torch.allclose(mean, expected_mean, atol=1e-5)
        assert likeness.min() > 0.9999
    else:
        assert likeness.median() > 0.99


@pytest.mark.parametrize("shape", [(14, 14), (24, 24), (7, 9)])
def test_the_kernel_of_parts_equals_scipy(shape: tuple[int, int]) -> None:
    maps = (
        torch.rand(500, *shape, generator=torch.Generator().manual_seed(1))
        < torch.linspace(0, 1, 500)[:, None, None]
    )
    assert torch.equal(box_union(maps.cuda()).cpu(), box_union(maps))


def test_the_kernel_of_class_sums_equals_the_plain_form() -> None:
    label = torch.randint(0, 150, (3, 300, 401)) // 40
    confidence, inside = torch.rand(label.shape), torch.rand(label.shape) < 0.9
    expected = torch.zeros(3, 150, dtype=torch.int64), torch.zeros(3, 150, dtype=torch.float64)
    found = tuple(table.cuda() for table in expected)
    add_class_sums(label, confidence, inside, *expected)
    add_class_sums(label.cuda(), confidence.cuda(), inside.cuda(), *found)
    assert torch.equal(found[0].cpu(), expected[0])
    assert torch.allclose(found[1].cpu(), expected[1], rtol=1e-6)
