import numpy as np
import pytest
import torch

from ovss_core.config import WindowConfig
from ovss_core.images.stitch import Stitcher, bilinear_matrix, chunk_by_area, stitch_matrix
from ovss_core.images.windows import WindowLayout, axis_windows
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
    maps = torch.rand(len(layout), 3, grid[0] * grid[1], generator=torch.Generator().manual_seed(window))
    return Stitcher((layout,), grid, (original,)), maps


def _stitched(stitcher: Stitcher, maps: torch.Tensor) -> torch.Tensor:
    return stitcher.stitch(stitcher.tile(maps))


@pytest.mark.parametrize("case", CASES)
def test_two_matrices_equal_upsampling_each_window_summing_dividing_and_resizing(
    case: tuple[tuple[int, int], int, int, int, tuple[int, int]],
) -> None:
    stitcher, maps = _case(case)
    [stitched] = _stitched(stitcher, maps)
    [layout] = stitcher.layouts
    grids = maps.double().transpose(0, 1).unflatten(2, stitcher.grid).numpy()
    for values, result in zip(grids, stitched.numpy(), strict=True):
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
    tiled = stitcher.tile(maps)
    strips = stitcher.strips(3, budget)
    parts = [stitcher.stitch(tiled, rows) for rows in strips]
    assert torch.allclose(torch.cat(parts, 2), stitcher.stitch(tiled), atol=1e-6)
    assert all(part.numel() <= max(budget, 3 * stitcher.size[1]) for part in parts)


@pytest.mark.parametrize("case", CASES)
def test_a_constant_map_stays_constant(case: tuple[tuple[int, int], int, int, int, tuple[int, int]]) -> None:
    stitcher, maps = _case(case)
    stitched = _stitched(stitcher, torch.full_like(maps, 0.3))
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
    weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("qd,bdhw->bqhw", weights, _stitched(stitcher, features))
    assert torch.allclose(_stitched(stitcher, weights @ features), expected, atol=1e-5)


def test_images_of_many_sizes_are_stitched_together_as_each_alone() -> None:
    resized = [((48, 48), (40, 31)), ((50, 70), (37, 91)), ((32, 96), (33, 5)), ((48, 48), (1, 1))]
    layouts = tuple(WindowLayout.of(*size, WindowConfig(size=32, stride=16)) for size, _ in resized)
    sizes = tuple(original for _, original in resized)
    maps = torch.rand(sum(map(len, layouts)), 2, 16, generator=torch.Generator().manual_seed(0))
    together = Stitcher(layouts, (4, 4), sizes)
    stitched, start = _stitched(together, maps), 0
    for image, (layout, size) in enumerate(zip(layouts, sizes, strict=True)):
        alone = Stitcher((layout,), (4, 4), (size,))
        own = maps[start : start + len(layout)]
        torch.testing.assert_close(stitched[image, :, : size[0], : size[1]], _stitched(alone, own)[0])
        assert not stitched[image, :, size[0] :].any()
        assert not stitched[image, :, :, size[1] :].any()
        assert together.inside[image].sum() == size[0] * size[1]
        start += len(layout)


def test_chunks_hold_their_budget_of_padded_numbers_and_every_image_once() -> None:
    sizes = [(10, 10), (10, 20), (40, 5), (3, 3), (100, 100), (2, 2)]
    chunks = chunk_by_area(sizes, 2, 1700)
    assert [place for chunk in chunks for place in range(len(sizes))[chunk]] == list(range(len(sizes)))
    for chunk in chunks:
        height, width = (max(side) for side in zip(*sizes[chunk], strict=True))
        assert len(sizes[chunk]) == 1 or 2 * height * width * len(sizes[chunk]) <= 1700
    assert len(chunks) < len(sizes)
    assert chunk_by_area([], 2, 10) == []
