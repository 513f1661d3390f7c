"""The kernel of layer norms in Triton's interpreter against torch's own."""

import pytest
import torch
from torch import nn

from ovss_core.kernels.norms import add_norm

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU `make test-gpu` runs the kernels on it"
)


def _norm(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps=1e-3).requires_grad_(False)
    chance = torch.Generator().manual_seed(width)
    for parameter in (norm.weight, norm.bias):
        parameter.copy_(torch.randn(width, generator=chance))
    return norm


@pytest.mark.parametrize("width", [32, 48])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("totals", [True, False])
def test_sum_and_norm_equal_torchs(width: int, adds: bool, totals: bool) -> None:
    from ovss_core.kernels.norms_triton import launch_add_norm

    chance, norm = torch.Generator().manual_seed(5), _norm(width)
    tokens = torch.randn(3, 9, width, generator=chance)[:, 2:]  # patches of larger tokens
    added = torch.randn(3, 1, width, generator=chance).expand(3, 7, width) if adds else None
    total = torch.randn(3, 7, width, generator=chance) if totals else None
    expected_total = None if total is None else total.clone()
    expected = add_norm(tokens, added, norm, expected_total)
    found = launch_add_norm(tokens, added, norm, total)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    if total is not None and expected_total is not None:
        assert torch.allclose(total, expected_total, atol=1e-6)
