"""The kernels of SFP in Triton's interpreter against the plain forms."""

import pytest
import torch
from torch import Tensor

from ovss_core.dense_heads import HeadOptions, build_head, similarity_guided
from ovss_core.feature_purification import mitigation, outliers, similarity
from ovss_core.feature_purification.mitigation import repair_tokens
from ovss_core.feature_purification.outliers import attention_outliers
from ovss_core.feature_purification.similarity import (
    SIMILARITY_CUT,
    SIMILARITY_GAIN,
    Aggregation,
    aggregate,
    guide_attention,
)
from ovss_core.kernels import attention, norms
from tests.tiny import random_windows, tiny_encoder

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU `make test-gpu` runs the kernels on it"
)
GRID = (4, 5)


def _tokens(width: int = 24) -> Tensor:
    """Draw tokens of which some are like each other, behind a class token."""
    chance = torch.Generator().manual_seed(width)
    return torch.randn(3, 21, width, generator=chance) + 0.9 * torch.randn(3, 1, width, generator=chance)


def _outliers(share: float) -> Tensor:
    return torch.rand(3, 20, generator=torch.Generator().manual_seed(7)) < share


@pytest.mark.parametrize("limit", [None, 0, 1, 3, 30])
@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_outliers_equal_the_plain_form(limit: int | None, factor: float) -> None:
    from ovss_core.kernels.guidance_triton import launch_outliers

    attention, own = torch.rand(2, 4, 23, generator=torch.Generator().manual_seed(3))
    expected = attention_outliers(attention, own, factor, limit)
    assert torch.equal(launch_outliers(attention, own, factor, limit), expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("width", [24, 32])
def test_repaired_tokens_equal_the_plain_form(share: float, width: int) -> None:
    from ovss_core.kernels.guidance_triton import launch_repair

    patches, outliers = _tokens(width)[:, 1:], _outliers(share)
    repaired, inverse = launch_repair(patches, outliers, GRID, norms=True)
    assert torch.allclose(repaired, repair_tokens(patches, outliers, GRID), atol=1e-6)
    assert inverse is not None
    assert torch.allclose(inverse, 1 / repaired.norm(dim=-1), rtol=1e-5)


def test_weights_average_as_the_plain_form_does() -> None:
    from ovss_core.kernels.guidance_triton import launch_weights

    tokens = _tokens()
    weights = launch_weights(tokens[:, 1:], SIMILARITY_CUT)
    plain = Aggregation.of(tokens[:, 1:])
    assert 0 < (plain.weights == 0).float().mean() < 1
    patches = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(2))
    averaged = Aggregation(weights, shares=True).apply(patches)
    assert torch.allclose(averaged, aggregate(plain.weights, patches), atol=1e-5)


@pytest.mark.parametrize("attend_before_cut", [True, False])
def test_guided_attention_equals_the_plain_form(attend_before_cut: bool) -> None:
    from ovss_core.kernels.guidance_triton import launch_guidance

    patches, outliers = _tokens()[:, 1:], _outliers(0.2)
    plain, expected = guide_attention(patches, outliers, GRID, attend_before_cut)
    weights, attention = launch_guidance(
        patches, outliers, GRID, SIMILARITY_CUT, SIMILARITY_GAIN, not attend_before_cut
    )
    assert torch.allclose(attention, expected, atol=1e-5)
    shares = plain.weights / plain.weights.sum(-1, keepdim=True)
    assert torch.allclose(weights, shares, atol=1e-5)


@pytest.mark.parametrize("host", ["sfp", "scclip"])
def test_a_head_that_finds_kernels_gives_the_features_of_the_plain_forms(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, windows = tiny_encoder(), random_windows(2, 24, 32)
    head = build_head(host, HeadOptions(purified=True))
    request = head.request(encoder.depth).with_mean_attention()

    def run() -> tuple[Tensor, Tensor]:
        trace = encoder.trace(windows, request)
        assert trace.mean_attention is not None
        return head.features(encoder, trace), trace.mean_attention

    expected = run()
    for module in (attention, mitigation, norms, outliers, similarity, similarity_guided):
        monkeypatch.setattr(module, "use_kernel", lambda tensor: True)
    monkeypatch.setattr(attention, "shared_memory", lambda device: 1 << 17)
    for ours, theirs in zip(run(), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
