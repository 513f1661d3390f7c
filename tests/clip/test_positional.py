import numpy as np
import pytest
import torch

from ovss_core.clip.positions import Resampling, resample_positions
from tests.oracles import resample_table


@pytest.mark.parametrize(
    ("base", "grid"), [((4, 4), (7, 7)), ((4, 4), (4, 9)), ((7, 7), (3, 5)), ((5, 3), (1, 12))]
)
def test_resampled_positions_equal_the_bicubic_formula_written_as_loops(
    base: tuple[int, int], grid: tuple[int, int]
) -> None:
    table = torch.randn(1 + base[0] * base[1], 6, generator=torch.Generator().manual_seed(1))
    expected = resample_table(table.double().numpy(), base, grid)
    np.testing.assert_allclose(resample_positions(table, base, grid).numpy(), expected, atol=2e-5)


def test_an_axis_that_fits_is_resampled_too_when_the_other_does_not() -> None:
    table = torch.randn(17, 2, generator=torch.Generator().manual_seed(0))
    wide = resample_positions(table, (4, 4), (4, 8))
    column = resample_positions(table, (4, 4), (8, 4))
    assert not torch.allclose(wide[1:].view(4, 8, 2)[:, 0], table[1:].view(4, 4, 2)[:, 0], atol=1e-3)
    assert wide.shape == column.shape == (33, 2)


@pytest.mark.parametrize("resampling", ["scale", "antialias"])
def test_the_base_grid_keeps_its_table_and_the_class_token_always_stays(resampling: Resampling) -> None:
    table = torch.randn(17, 5)
    assert resample_positions(table, (4, 4), (4, 4), resampling) is table
    assert torch.equal(resample_positions(table, (4, 4), (6, 3), resampling)[0], table[0])


@pytest.mark.parametrize("resampling", ["scale", "antialias"])
def test_constant_positions_stay_constant_on_any_grid(resampling: Resampling) -> None:
    table = torch.ones(17, 3)
    for grid in [(1, 1), (1, 9), (13, 2), (28, 28)]:
        resampled = resample_positions(table, (4, 4), grid, resampling)
        assert torch.allclose(resampled, torch.ones(1 + grid[0] * grid[1], 3), atol=1e-5)


def test_mirroring_the_table_mirrors_the_antialiased_positions() -> None:
    table = torch.randn(17, 3, generator=torch.Generator().manual_seed(2))
    mirrored = torch.cat([table[:1], table[1:].view(4, 4, 3).flip(1).flatten(0, 1)])
    ours = resample_positions(mirrored, (4, 4), (6, 7), "antialias")[1:].view(6, 7, 3)
    expected = resample_positions(table, (4, 4), (6, 7), "antialias")[1:].view(6, 7, 3).flip(1)
    assert torch.allclose(ours, expected, atol=1e-5)


def test_low_precision_tables_keep_their_number_format() -> None:
    table = torch.randn(17, 3).bfloat16()
    assert resample_positions(table, (4, 4), (5, 5)).dtype == torch.bfloat16
