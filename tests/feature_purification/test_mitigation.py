import numpy as np
import pytest
import torch
from torch import Tensor

from ovss_core.feature_purification.mitigation import repair_tokens
from tests import oracles


def _case(grid: tuple[int, int], outliers: list[int], windows: int = 1) -> tuple[Tensor, Tensor]:
    count = grid[0] * grid[1]
    tokens = torch.randn(windows, count, 5, generator=torch.Generator().manual_seed(count))
    mask = torch.zeros(windows, count, dtype=torch.bool)
    mask[:, outliers] = True
    return tokens, mask


def test_a_corner_becomes_the_mean_of_its_three_neighbors() -> None:
    tokens, mask = _case((3, 4), [0])
    repaired = repair_tokens(tokens, mask, (3, 4))
    assert torch.allclose(repaired[0, 0], (tokens[0, 1] + tokens[0, 4] + tokens[0, 5]) / 3, atol=1e-6)
    assert torch.equal(repaired[0, 1:], tokens[0, 1:])


def test_adjacent_outliers_do_not_repair_each_other() -> None:
    tokens, mask = _case((1, 4), [1, 2])
    repaired = repair_tokens(tokens, mask, (1, 4))
    assert torch.allclose(repaired[0, 1], tokens[0, 0])
    assert torch.allclose(repaired[0, 2], tokens[0, 3])


def test_an_outlier_enclosed_by_outliers_stays_as_it_is() -> None:
    tokens, mask = _case((3, 3), list(range(9)))
    assert torch.equal(repair_tokens(tokens, mask, (3, 3)), tokens)
    tokens, mask = _case((4, 4), [0, 1, 4, 5])
    repaired = repair_tokens(tokens, mask, (4, 4))
    assert torch.equal(repaired[0, 0], tokens[0, 0])
    assert not torch.equal(repaired[0, 5], tokens[0, 5])


def test_a_single_patch_that_is_an_outlier_stays_as_it_is() -> None:
    tokens, mask = _case((1, 1), [0])
    assert torch.equal(repair_tokens(tokens, mask, (1, 1)), tokens)


def test_without_outliers_the_tokens_come_back_unchanged() -> None:
    tokens, mask = _case((3, 4), [], windows=2)
    assert torch.equal(repair_tokens(tokens, mask, (3, 4)), tokens)


def test_the_input_is_never_changed() -> None:
    tokens, mask = _case((3, 4), [5])
    before = tokens.clone()
    repair_tokens(tokens, mask, (3, 4))
    assert torch.equal(tokens, before)


@pytest.mark.parametrize("grid", [(3, 7), (7, 3), (1, 9), (9, 1), (6, 6)])
def test_any_grid_equals_the_loop_written_repair_in_a_batch(grid: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(grid[0])
    tokens = torch.randn(4, grid[0] * grid[1], 5, generator=generator)
    mask = torch.rand(tokens.shape[:2], generator=generator) < 0.45
    repaired = repair_tokens(tokens, mask, grid)
    for window in range(4):
        outliers = set(mask[window].nonzero()[:, 0].tolist())
        expected = oracles.repair(tokens[window].double().numpy(), outliers, grid)
        np.testing.assert_allclose(repaired[window].numpy(), expected, atol=1e-6)


def test_a_class_token_in_front_is_left_alone_and_shifts_nothing() -> None:
    tokens, mask = _case((3, 4), [0, 6], windows=2)
    first = torch.randn(2, 1, 5)
    with_class = repair_tokens(torch.cat([first, tokens], 1), mask, (3, 4))
    assert torch.equal(with_class[:, :1], first)
    assert torch.equal(with_class[:, 1:], repair_tokens(tokens, mask, (3, 4)))


def test_mirroring_the_grid_mirrors_the_repair() -> None:
    tokens, mask = _case((3, 4), [0, 5, 6])
    mirrored = repair_tokens(
        tokens.view(1, 3, 4, 5).flip(2).flatten(1, 2), mask.view(1, 3, 4).flip(2).flatten(1), (3, 4)
    )
    expected = repair_tokens(tokens, mask, (3, 4)).view(1, 3, 4, 5).flip(2).flatten(1, 2)
    assert torch.allclose(mirrored, expected, atol=1e-6)
