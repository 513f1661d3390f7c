"""What only a GPU shows; run with `make test-gpu`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ovss_core.api import OpenVocabSegmenter
from ovss_core.class_purification.regions import box_union
from ovss_core.config import PurificationConfig, SegmenterConfig
from ovss_core.kernels.attention import attend_with_mean
from ovss_core.kernels.class_sums import add_class_sums
from pipelines.demonstration.scenes import render_scene

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]

SETTINGS = [
    ("clearclip", PurificationConfig()),
    ("sfp", PurificationConfig()),
    ("sfp", PurificationConfig(method="none")),
    ("clearclip", PurificationConfig(variant="released")),
    ("maskclip", PurificationConfig(variant="paper")),
]
NEAR_TIES = 2e-3
"""Share of pixels whose two best classes lie closer than float32 sums in another order tell apart."""


def _pictures(count: int, size: int = 336) -> list[np.ndarray]:
    return [render_scene(seed, size).image for seed in range(count)]


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


@pytest.mark.parametrize(("host", "purification"), SETTINGS[:3])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [50, 197, 577])
def test_the_attention_kernel_equals_the_plain_form(dtype: torch.dtype, tokens: int) -> None:
    packed = torch.randn(2, tokens, 3, 12, 64, device="cuda", dtype=dtype)
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    attended, mean = attend_with_mean(query, key, value, 0.125)
    wide = (query.double() @ key.double().mT * 0.125).softmax(-1)
    assert torch.allclose(mean.double(), wide.mean(1), atol=1e-5 if dtype == torch.float32 else 1e-4)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert torch.allclose(attended.double(), wide @ value.double(), atol=tolerance)


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
