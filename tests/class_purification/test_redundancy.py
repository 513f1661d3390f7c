import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovss_core.class_purification.evidence import ActiveRows
from ovss_core.class_purification.redundancy import (
    normalise_pairs,
    released_bound,
    released_score,
    spatial_consistency,
)
from tests.oracles_freecp import min_max, soft_iou


def rows_of(probability: torch.Tensor, pair: list[int] | None = None) -> ActiveRows:
    pairs = torch.tensor(pair if pair is not None else list(range(len(probability))))
    return ActiveRows(torch.zeros_like(pairs), pairs, int(pairs.max()) + 1, probability, probability)


def test_a_sure_class_that_refinement_leaves_in_place_scores_one_half() -> None:
    assert released_score(rows_of(torch.ones(1, 16)), torch.ones(1, 16)).item() == pytest.approx(0.5)


def test_a_class_that_refinement_moves_away_entirely_scores_zero() -> None:
    before = torch.tensor([[1.0, 1, 0, 0]])
    assert released_score(rows_of(before), before.flip(1)).item() == 0
    assert spatial_consistency(rows_of(before), before.flip(1)).item() == 0


def test_numerators_and_denominators_add_up_over_the_windows_of_an_image() -> None:
    probability = torch.tensor([[0.5, 0.0], [0.2, 0.2]])
    refined = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = released_score(rows_of(probability, [0, 0]), refined)
    assert found.tolist() == [pytest.approx((0.5 + 0.2) / (0.9 + 2.0))]


@given(st.integers(0, 10_000), st.floats(0.01, 1))
def test_the_released_score_stays_below_its_bound(seed: int, peak: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand(1, 20, generator=generator)
    probability *= peak / probability.max()
    refined = (torch.rand(1, 20, generator=generator) > 0.5).float()
    score = released_score(rows_of(probability), refined)
    assert score.item() <= released_bound(torch.tensor(peak)).item() + 1e-6


def test_consistency_is_one_for_an_unmoved_map_however_weak() -> None:
    raw = torch.tensor([[0.001, 0.003, 0.0, 0.002]])
    refined = (raw - raw.min()) / (raw.max() - raw.min())
    assert spatial_consistency(rows_of(raw), refined).item() == pytest.approx(1, abs=1e-4)


def test_consistency_is_zero_for_an_empty_refined_map() -> None:
    assert spatial_consistency(rows_of(torch.full((1, 4), 0.5)), torch.zeros(1, 4)).item() == 0


@given(st.integers(0, 10_000))
def test_consistency_is_the_soft_iou_of_both_normalised_maps(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(1, 12, generator=generator, dtype=torch.float64)
    refined = torch.rand(1, 12, generator=generator, dtype=torch.float64)
    expected = soft_iou(min_max(raw.numpy()), refined.numpy())
    assert spatial_consistency(rows_of(raw), refined).item() == pytest.approx(expected)


def test_a_map_that_is_constant_but_for_rounding_becomes_one_throughout() -> None:
    rounding = torch.tensor([[0.2, 0.2 + 6e-8, 0.2 - 6e-8, 0.2]])
    assert torch.equal(normalise_pairs(rounding, rows_of(rounding)), torch.ones(1, 4))
    uneven = torch.tensor([[0.2, 0.2002, 0.2, 0.2]])
    assert normalise_pairs(uneven, rows_of(uneven)).min().item() == 0


def test_an_empty_map_stays_empty() -> None:
    empty = torch.zeros(1, 4)
    assert torch.equal(normalise_pairs(empty, rows_of(empty)), empty)
