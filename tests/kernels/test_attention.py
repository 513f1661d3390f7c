"""The kernels of attention in Triton's interpreter against the plain forms."""

import pytest
import torch
from torch import Tensor

from ovss_core.kernels import attention
from ovss_core.kernels.attention import attend_by_terms, attend_with_mean

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU `make test-gpu` runs the kernels on it"
)


def _packed(tokens: int, vectors: int = 3) -> list[Tensor]:
    packed = torch.randn(2, tokens, vectors, 3, 8, generator=torch.Generator().manual_seed(tokens))
    return list(packed.permute(2, 0, 3, 1, 4))


@pytest.mark.parametrize("tokens", [5, 17, 50])
@pytest.mark.parametrize("known", [True, False])
def test_the_mean_over_heads_equals_the_plain_form(
    tokens: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ovss_core.kernels import attention_triton

    monkeypatch.setattr(attention_triton, "TILE", (16, 32))
    query, key, value = _packed(tokens)
    total = torch.rand(2, tokens - 1, tokens - 1, generator=torch.Generator().manual_seed(1))
    expected_total = total.clone()
    _, expected = attend_with_mean(query, key, value, 0.35, expected_total)
    if known:
        log_sums = (query @ key.mT * 0.35).logsumexp(-1)
        mean = attention_triton.launch_mean(query, key, log_sums, 0.35, total, True)
    else:
        mean = attention_triton.launch_mean_with_sums(query, key, 0.35, total, True)
    assert mean is not None
    assert expected is not None
    assert torch.allclose(mean, expected, atol=1e-6)
    assert torch.allclose(total, expected_total, atol=1e-6)


def test_a_mean_that_nobody_wants_whole_is_only_added() -> None:
    from ovss_core.kernels.attention_triton import launch_mean_with_sums

    query, key, value = _packed(10)
    _, whole = attend_with_mean(query, key, value, 0.35)
    total = torch.zeros(2, 9, 9)
    assert launch_mean_with_sums(query, key, 0.35, total, False) is None
    assert whole is not None
    assert torch.allclose(total, whole[:, 1:, 1:], atol=1e-6)


@pytest.mark.parametrize("terms", [0, 1, 2])
@pytest.mark.parametrize("second", [True, False])
def test_attention_by_terms_is_the_same_in_few_passes(terms: int, second: bool) -> None:
    one, other, value, added = _packed(20, 4)
    vectors, beside = (one, other)[:terms], added if second else None
    shared = torch.rand(2, 20, 20, generator=torch.Generator().manual_seed(1)).softmax(-1)
    expected = attend_by_terms(vectors, 0.35, shared, value, beside)
    found = attention._attend_in_few_passes(vectors, 0.35, shared, value, beside)
    assert torch.allclose(found, expected, atol=1e-5)
