"""The kernels of small steps around the tower against the plain forms."""

from dataclasses import replace

import pytest
import torch

from ovss_core.class_purification.refinement import ROUNDS, balance, spread
from ovss_core.engine.finite import finite_rows, sound_windows
from ovss_core.images.pixels import regions_of, windows_of
from ovss_core.images.resize import CLIP_MEAN, CLIP_STD, channel_levels, normalize
from ovss_core.kernels.averages import room_for_map
from tests.kernels.where import MARKS, launched

pytest.importorskip("triton")
pytestmark = MARKS


@pytest.mark.parametrize("patches", [9, 40])
def test_balanced_attention_and_its_transfer_matrix_equal_the_two_vectors(patches: int) -> None:
    from ovss_core.kernels.affinity_triton import launch_balance

    chance = torch.Generator().manual_seed(patches)
    attention = torch.rand(3, patches, patches, generator=chance) ** 4
    attention[0, :, 2] = 0
    attention[1, 4] = 0
    expected = balance(attention)
    row_scale, column_scale, transfer = launched(launch_balance)(attention, ROUNDS)
    torch.testing.assert_close(row_scale, expected.row_scale)
    torch.testing.assert_close(column_scale, expected.column_scale)
    maps = torch.rand(3, 5, patches, generator=chance)
    formed = spread(replace(expected, transfer=transfer), maps)
    torch.testing.assert_close(formed, spread(expected, maps), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter cuts bfloat16 off
def test_windows_are_normalized_as_by_the_plain_form(dtype: torch.dtype) -> None:
    from ovss_core.kernels.pixels_triton import launch_planes

    pixels = torch.randint(
        0, 256, (20 * 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)
    )
    first, width = torch.tensor([0, 3 * 30 + 14]), torch.tensor([30, 30])
    levels = (channel_levels(values, pixels.device) for values in (CLIP_MEAN, CLIP_STD))
    planes = launched(launch_planes)(pixels, first, width, (15, 16), *levels, dtype)
    assert torch.equal(planes, normalize(windows_of(pixels, first, width, (15, 16))).to(dtype))


def test_patches_are_laid_side_by_side_behind_a_row_of_zeros() -> None:
    from ovss_core.kernels.pixels_triton import launch_patches

    planes = torch.randn(2, 3, 10, 13, generator=torch.Generator().manual_seed(1))
    patches = launched(launch_patches)(planes, (2, 3), 4)
    assert not patches[:, 0].any()
    assert torch.equal(patches[:, 1:], torch.nn.functional.unfold(planes[:, :, :8, :12], 4, stride=4).mT)


def test_windows_and_regions_are_cut_as_by_the_plain_forms() -> None:
    from ovss_core.kernels.pixels_triton import launch_regions, launch_windows

    chance = torch.Generator().manual_seed(7)
    pixels = torch.randint(0, 256, (20 * 30 + 17 * 25, 3), dtype=torch.uint8, generator=chance)
    first, width = torch.tensor([0, 600]), torch.tensor([30, 25])
    window_first, window_width = torch.tensor([0, 5 * 30 + 14, 600 + 25]), torch.tensor([30, 30, 25])
    cut = launched(launch_windows)(pixels, window_first, window_width, (15, 16))
    assert torch.equal(cut, windows_of(pixels, window_first, window_width, (15, 16)))
    image = torch.tensor([0, 1, 0, 1])
    corners = torch.tensor([[0, 0, 30, 20], [3, 4, 4, 5], [10, 2, 26, 18], [0, 0, 25, 17]])
    for side in (8, 19):
        ours = launched(launch_regions)(pixels, first, width, image, corners, side)
        assert torch.equal(ours, regions_of(pixels, first, width, image, corners, side))


@pytest.mark.parametrize("adds", [True, False])
def test_averages_by_padded_maps_equal_the_products(adds: bool) -> None:
    from ovss_core.kernels.averages_triton import launch_average

    chance = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, 41, 136, generator=chance).half()
    table = room_for_map(tokens[:, 1:]).zero_()
    table[:, :, :40] = torch.rand(2, 40, 40, generator=chance) / 40
    added = torch.randn(2, 40, 136, generator=chance).half() if adds else None
    found = launched(lambda *given: launch_average(given[0][:, :, :40], given[1][:, 1:], given[2], 0.25))(
        table, tokens, added
    )
    expected = table[:, :, :40].float() @ tokens[:, 1:].float()
    expected = expected if added is None else expected + 0.25 * added.float()
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)


def test_windows_that_hold_something_else_than_numbers_are_told() -> None:
    from ovss_core.kernels.finite_triton import launch_sound

    features, attention = torch.rand(6, 3, 5), torch.rand(6, 3, 3)
    features[1, 2, 4], features[2, 0, 0], features[3] = torch.nan, torch.inf, 0
    attention[4, 1, 1] = torch.nan
    assert launched(launch_sound)(features, attention).tolist() == [True, False, False, False, False, True]
    assert torch.equal(launched(launch_sound)(features, attention), sound_windows(features, attention))
    assert torch.equal(launched(launch_sound)(features, None), finite_rows(features))
