"""The kernels of ambiguous groups against the plain forms."""

import pytest
import torch

from ovss_core.class_purification.regions import threshold_levels
from tests import group_forms
from tests.kernels.where import MARKS, launched

pytest.importorskip("triton")
pytestmark = MARKS


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("excluded", [-1, 3])
def test_classes_that_coincide_are_joined_along_chains(rows: int, excluded: int) -> None:
    from ovss_core.kernels.groups_triton import launch_groups

    chance = torch.Generator().manual_seed(1)
    shapes = (torch.rand(3, 3, 30, generator=chance) > 0.7).float()
    maps = shapes[:, [0, 1, 0, 2, 1, 0, 2]] + 0.1 * torch.rand(3, 7, 30, generator=chance)
    maps[2] = torch.rand(7, 30, generator=chance) ** 8
    classes = torch.tensor([[1, 3, 4, 6, 7, 8, 9], [0, 2, 3, 5, -1, -1, -1], [0, 1, 2, 3, 4, 5, 6]])
    maps[classes < 0] = 0
    given = (torch.cdist(maps, maps, p=1), maps.sum(2), classes, rows, 0.5, excluded)
    expected = group_forms.groups(*given)
    for ours, plain in zip(launched(launch_groups)(*given), expected, strict=True):
        torch.testing.assert_close(ours, plain)
    assert (expected[0] >= 0).any()
    assert expected[2].all() == (rows == 4)


@pytest.mark.parametrize("capacity", [2, 6])
def test_boxes_of_groups_are_listed_once_and_cut_at_the_images_edge(capacity: int) -> None:
    from ovss_core.kernels.groups_triton import launch_boxes, launch_list

    chance = torch.Generator().manual_seed(2)
    maps = torch.rand(2, 3, 6, 9, generator=chance, dtype=torch.float64) ** 2
    maps[0, 1], maps[1, 0, 2:] = 0, 0
    ring = torch.zeros(6, 9, dtype=torch.float64)
    ring[0:4, 0], ring[3, 0:4], ring[0, 2:4], ring[0:2, 3] = 1, 1, 1, 1
    maps[1, 2] = ring
    members = torch.tensor([[[0, 2], [1, 3], [4, 5]], [[0, 1], [-1, -1], [2, 3]]])
    limits = torch.tensor([[140, 90], [139, 96]])
    given = (maps, members, limits, threshold_levels(0.4, maps.device), capacity, 16)
    expected = group_forms.boxes(*given)
    found = launched(launch_boxes)(*given)
    for ours, plain in zip(found, expected, strict=True):
        assert torch.equal(ours, plain)
    boxes, used, _ = found
    for rows in (1, 40):
        listing = launched(launch_list)(boxes, used, rows)
        for ours, plain in zip(listing, group_forms.listed(boxes, used, rows), strict=True):
            assert torch.equal(ours, plain)
    nothing = torch.zeros(2, 0, 0, 4, dtype=torch.int64)
    image, corners, complete, needed = launched(launch_list)(nothing, nothing[..., 0].bool(), 3)
    assert (image.tolist(), corners[2].tolist(), bool(complete), int(needed)) == (
        [0, 0, 0],
        [0, 0, 1, 1],
        True,
        0,
    )
