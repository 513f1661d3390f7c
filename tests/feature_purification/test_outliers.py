import numpy as np
import pytest
import torch

from ovss_core.feature_purification.outliers import (
    attention_outliers,
    local_outlier_factor,
    local_outlier_factor_outliers,
    norm_outliers,
)
from tests import oracles


def _found(mask: torch.Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask]


CLASS_ROW = torch.tensor([[0.10, 0.20, 0.30, 0.05, 0.25]])
DIAGONAL = torch.tensor([[0.20, 0.20, 0.10, 0.50, 0.26]])


def test_a_patch_is_an_outlier_when_the_class_token_attends_to_it_more_than_it_does_itself() -> None:
    assert _found(attention_outliers(CLASS_ROW, DIAGONAL, 1.0)) == [[2]]


def test_equal_attention_is_no_outlier() -> None:
    tie = torch.full((1, 4), 0.25)
    assert _found(attention_outliers(tie, tie, 1.0)) == [[]]
    assert _found(attention_outliers(2 * tie, tie, 0.5)) == [[]]


def test_a_larger_factor_finds_more() -> None:
    assert _found(attention_outliers(CLASS_ROW, DIAGONAL, 1.5)) == [[1, 2, 4]]
    assert _found(attention_outliers(CLASS_ROW, DIAGONAL, 100.0)) == [[0, 1, 2, 3, 4]]
    assert _found(attention_outliers(CLASS_ROW, DIAGONAL, 0.0)) == [[]]


def test_a_limit_keeps_those_with_the_most_class_attention() -> None:
    assert _found(attention_outliers(CLASS_ROW, DIAGONAL, 1.5, 2)) == [[2, 4]]
    assert _found(attention_outliers(CLASS_ROW, DIAGONAL, 1.5, 0)) == [[]]
    assert _found(attention_outliers(CLASS_ROW, DIAGONAL, 1.5, 99)) == [[1, 2, 4]]


def test_a_limit_above_the_number_of_candidates_adds_no_inlier() -> None:
    assert _found(attention_outliers(CLASS_ROW, DIAGONAL, 1.0, 3)) == [[2]]


def test_random_rows_equal_the_loop_written_rule_in_a_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    row, diagonal = torch.rand(6, 30, generator=generator), torch.rand(6, 30, generator=generator)
    for factor, limit in [(1.0, None), (1.5, 10), (0.7, 3)]:
        found = attention_outliers(row, diagonal, factor, limit)
        for window in range(6):
            expected = oracles.attention_outliers(
                row[window].numpy(), diagonal[window].numpy(), float(np.float32(factor)), limit
            )
            assert set(_found(found)[window]) == expected


def test_norm_outliers_are_those_far_above_the_windows_mean_norm() -> None:
    patches = torch.ones(2, 30, 4)
    patches[0, 7] *= 20
    assert _found(norm_outliers(patches)) == [[7], []]


@pytest.mark.parametrize("count", [5, 49])
def test_local_outlier_factors_equal_the_loop_written_ones(count: int) -> None:
    patches = torch.randn(2, count, 6, generator=torch.Generator().manual_seed(count)).double()
    patches[0, 3] *= 8
    for window in range(2):
        expected = oracles.lof_scores(patches[window].numpy())
        np.testing.assert_allclose(local_outlier_factor(patches)[window].numpy(), expected, rtol=1e-9)
        found = local_outlier_factor_outliers(patches)[window].nonzero()[:, 0].tolist()
        assert set(found) == oracles.lof_outliers(patches[window].numpy())
    if count > 30:
        assert local_outlier_factor(patches)[0].argmax() == 3


def test_local_outlier_factors_of_close_patches_in_float32_are_those_of_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    patches = torch.randn(1, 196, 64, generator=generator) + 100 * torch.randn(1, 1, 64, generator=generator)
    expected = oracles.lof_scores(patches[0].double().numpy())
    np.testing.assert_allclose(local_outlier_factor(patches)[0].numpy(), expected, rtol=1e-6)
    products = torch.cdist(patches, patches).square().topk(31, largest=False).values[0, :, -1]
    exact = torch.cdist(patches.double(), patches.double()).square().topk(31, largest=False).values[0, :, -1]
    assert ((products - exact).abs() / exact).max() > 1e-3  # what the ordinary call would have lost


@pytest.mark.parametrize("rule", [norm_outliers, local_outlier_factor_outliers])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_patches_and_single_patches_hold_no_outlier(rule, dtype) -> None:  # type: ignore[no-untyped-def]
    for shape in [(2, 1, 4), (2, 2, 4), (1, 16, 4)]:
        found = rule(torch.ones(shape, dtype=dtype))
        assert found.shape == shape[:2]
        assert not found.any()
    assert local_outlier_factor(torch.ones(1, 16, 4)).isfinite().all()
