import numpy as np
import pytest
import torch

from ovss_core.feature_purification.attention_integration import integrate_attention, scaling_vectors
from tests import oracles


def _attention(windows: int = 2, patches: int = 9) -> torch.Tensor:
    return torch.rand(windows, patches, patches, generator=torch.Generator().manual_seed(4)) ** 3


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_two_vectors_do_what_the_dense_normalization_does(rounds: int) -> None:
    attention = _attention()
    attention[0, :, 3] = 0
    features = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(5))
    integrated = integrate_attention(attention, features, rounds)
    for window in range(2):
        dense = oracles.balanced(attention[window].double().numpy(), rounds)
        np.testing.assert_allclose(integrated[window].numpy(), dense @ features[window].numpy(), atol=1e-5)


@pytest.mark.parametrize("rounds", [1, 3])
def test_columns_sum_to_one_but_empty_ones(rounds: int) -> None:
    attention = _attention()
    attention[:, :, 3] = 0
    rows, columns = scaling_vectors(attention, rounds)
    sums = (rows[..., None] * attention * columns[:, None]).sum(1)
    expected = torch.ones(2, 9)
    expected[:, 3] = 0
    assert torch.allclose(sums, expected, atol=1e-5)


def test_many_rounds_make_rows_sum_to_one_too() -> None:
    rows, columns = scaling_vectors(_attention(), 100)
    sums = (rows[..., None] * _attention() * columns[:, None]).sum(2)
    assert torch.allclose(sums, torch.ones(2, 9), atol=1e-4)


@pytest.mark.parametrize("rounds", [1, 4])
def test_a_doubly_stochastic_map_is_a_fixed_point(rounds: int) -> None:
    identity, cycle = torch.eye(9), torch.eye(9).roll(1, 0)
    stochastic = (0.5 * identity + 0.3 * cycle + 0.2 / 9)[None]
    features = torch.randn(1, 9, 4)
    assert torch.allclose(integrate_attention(stochastic, features, rounds), stochastic @ features, atol=1e-5)


def test_scaling_a_map_changes_nothing() -> None:
    features = torch.randn(2, 9, 4)
    first = integrate_attention(_attention(), features)
    assert torch.allclose(integrate_attention(11 * _attention(), features), first, atol=1e-5)


def test_constant_features_stay_constant_up_to_the_row_sums() -> None:
    attention = _attention()
    rows, columns = scaling_vectors(attention, 1)
    sums = (rows[..., None] * attention * columns[:, None]).sum(2, keepdim=True)
    assert torch.allclose(
        integrate_attention(attention, torch.full((2, 9, 3), 7.0)), 7 * sums.expand(2, 9, 3)
    )


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_map_of_zeros_gives_zeros_and_no_nan(rounds: int) -> None:
    assert integrate_attention(torch.zeros(1, 4, 4), torch.randn(1, 4, 3), rounds).abs().max() == 0


def test_low_precision_features_keep_their_number_format() -> None:
    features = torch.randn(2, 9, 4)
    low = integrate_attention(_attention(), features.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), integrate_attention(_attention(), features), atol=0.05)
