import numpy as np
import pytest
import torch

from ovss_core.config import WindowConfig
from ovss_core.inference.stitching import Stitcher, bilinear_matrix, stitch_matrix
from ovss_core.inference.windows import WindowLayout, axis_windows
from tests import oracles

CASES = [
    # resized, window, stride, patch, original
    ((48, 48), 32, 16, 8, (48, 48)),
    ((50, 70), 32, 16, 8, (37, 91)),
    ((20, 53), 32, 16, 8, (61, 13)),
    ((33, 47), 30, 7, 8, (1, 300)),
    ((9, 9), 64, 64, 8, (1, 1)),
    ((40, 61), 20, 20, 16, (40, 61)),
]


def _case(case: tuple[tuple[int, int], int, int, int, tuple[int, int]]) -> tuple[Stitcher, torch.Tensor]:
    resized, window, stride, patch, original = case
    layout = WindowLayout.of(*resized, WindowConfig(size=window, stride=stride))
    grid = (layout.window_size[0] // patch, layout.window_size[1] // patch)
    maps = torch.rand(3, len(layout), *grid, generator=torch.Generator().manual_seed(window))
    return Stitcher(layout, grid, original), maps


@pytest.mark.parametrize("case", CASES)
def test_two_matrices_equal_upsampling_each_window_summing_dividing_and_resizing(
    case: tuple[tuple[int, int], int, int, int, tuple[int, int]],
) -> None:
    stitcher, maps = _case(case)
    stitched = stitcher.stitch(stitcher.side_by_side(maps))
    layout = stitcher.layout
    for values, result in zip(maps.double().numpy(), stitched.numpy(), strict=True):
        expected = oracles.stitch(
            values, layout.origins, layout.window_size, layout.image_size, stitcher.size
        )
        np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", [1, 400, 5000])
def test_strips_put_together_are_the_whole_within_their_budget(
    case: tuple[tuple[int, int], int, int, int, tuple[int, int]], budget: int
) -> None:
    stitcher, maps = _case(case)
    tiled = stitcher.side_by_side(maps)
    strips = stitcher.strips(3, budget)
    parts = [stitcher.stitch(tiled, rows) for rows in strips]
    assert torch.allclose(torch.cat(parts, 1), stitcher.stitch(tiled), atol=1e-6)
    assert all(part.numel() <= max(budget, 3 * stitcher.size[1]) for part in parts)


@pytest.mark.parametrize("case", CASES)
def test_a_constant_map_stays_constant(case: tuple[tuple[int, int], int, int, int, tuple[int, int]]) -> None:
    stitcher, maps = _case(case)
    stitched = stitcher.stitch(stitcher.side_by_side(torch.full_like(maps, 0.3)))
    assert torch.allclose(stitched, torch.full_like(stitched, 0.3), atol=1e-6)


def test_rows_have_at_most_eight_numbers_that_sum_to_one() -> None:
    for length, output in [(336, 500), (336, 211), (1000, 333)]:
        matrix = stitch_matrix(axis_windows(length, 224, 112), 14, output)
        assert (matrix != 0).sum(1).max() <= 8
        assert torch.allclose(matrix.sum(1), torch.ones(output), atol=1e-6)


@pytest.mark.parametrize(("length", "output"), [(4, 4), (4, 9), (9, 4), (1, 5), (5, 1)])
def test_the_bilinear_matrix_is_torchs_interpolation(length: int, output: int) -> None:
    values = torch.randn(1, 1, length, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(values, output, mode="linear")
    assert torch.allclose(bilinear_matrix(length, output) @ values[0, 0], expected[0, 0])


def test_stitching_features_and_then_scoring_equals_stitching_scores() -> None:
    stitcher, features = _case(CASES[1])
    weights = torch.randn(5, 3, dtype=torch.float32)
    scores = torch.einsum("qd,dwrc->qwrc", weights, features)
    stitched = stitcher.stitch(stitcher.side_by_side(features))
    expected = torch.einsum("qd,dhw->qhw", weights, stitched)
    assert torch.allclose(stitcher.stitch(stitcher.side_by_side(scores)), expected, atol=1e-5)
