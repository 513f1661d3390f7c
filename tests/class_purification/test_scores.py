import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovss_core.class_purification.class_maps import ClassMaps
from ovss_core.class_purification.placement import Units
from ovss_core.class_purification.scores import (
    normalized_consistency,
    released_bound,
    released_score,
    spatial_consistency,
)
from tests.oracles_freecp import min_max, soft_iou


def maps_of(values: torch.Tensor) -> ClassMaps:
    """One class of one unit; a row a window."""
    return ClassMaps(Units.of((len(values),)), torch.tensor([[0]]), values[:, None])


def test_a_sure_class_that_refinement_leaves_in_place_scores_one_half() -> None:
    assert released_score(maps_of(torch.ones(1, 16)), maps_of(torch.ones(1, 16))).item() == pytest.approx(0.5)


def test_a_class_that_refinement_moves_away_entirely_scores_zero() -> None:
    before = torch.tensor([[1.0, 1, 0, 0]])
    assert released_score(maps_of(before), maps_of(before.flip(1))).item() == 0
    assert spatial_consistency(maps_of(before), maps_of(before.flip(1))).item() == 0


def test_numerators_and_denominators_add_up_over_the_windows_of_an_image() -> None:
    probability = torch.tensor([[0.5, 0.0], [0.2, 0.2]])
    refined = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = released_score(maps_of(probability), maps_of(refined))
    assert found.item() == pytest.approx((0.5 + 0.2) / (0.9 + 2.0))


@given(st.integers(0, 10_000), st.floats(0.01, 1))
def test_the_released_score_stays_below_its_bound(seed: int, peak: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand(1, 20, generator=generator)
    probability *= peak / probability.max()
    refined = (torch.rand(1, 20, generator=generator) > 0.5).float()
    score = released_score(maps_of(probability), maps_of(refined))
    assert score.item() <= released_bound(torch.tensor(peak)).item() + 1e-6


def test_normalized_consistency_is_one_for_an_unmoved_map_however_weak_and_the_papers_thresholds_keep_it() -> (
    None
):
    raw = torch.tensor([[0.001, 0.003, 0.0, 0.002]])
    refined = (raw - raw.min()) / (raw.max() - raw.min())
    assert normalized_consistency(maps_of(raw), maps_of(refined)).item() == pytest.approx(1, abs=1e-4)
    assert spatial_consistency(maps_of(raw), maps_of(refined)).item() == pytest.approx(0.006 / 2, rel=1e-2)


def test_consistency_is_zero_for_an_empty_refined_map() -> None:
    assert spatial_consistency(maps_of(torch.full((1, 4), 0.5)), maps_of(torch.zeros(1, 4))).item() == 0


@given(st.integers(0, 10_000))
def test_consistency_is_the_soft_iou_of_both_maps(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(1, 12, generator=generator, dtype=torch.float64)
    refined = torch.rand(1, 12, generator=generator, dtype=torch.float64)
    found = normalized_consistency(maps_of(raw), maps_of(refined)).item()
    assert found == pytest.approx(soft_iou(min_max(raw.numpy()), refined.numpy()))
    found = spatial_consistency(maps_of(raw), maps_of(refined)).item()
    assert found == pytest.approx(soft_iou(raw.numpy(), refined.numpy()))
