import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ovss_core.class_purification.class_maps import ClassMaps
from ovss_core.class_purification.placement import Units
from ovss_core.class_purification.winners import (
    AmbiguousRegions,
    LabelEdits,
    pick_winners,
    remove_losers,
    scale_boxes,
)

CLASSES = np.array([[2, 5, 9]])
"""Kept by one image; 2 and 5 are ambiguous."""


def regions_of(
    window: int, *boxes: tuple[int, int, int, int], members: tuple[int, ...] = (2, 5)
) -> AmbiguousRegions:
    count = len(boxes)
    return AmbiguousRegions(
        np.zeros(count, np.int64),
        np.full(count, window),
        np.zeros(count, np.int64),
        np.array(boxes, np.int64).reshape(-1, 4),
        np.array([members]),
    )


def after(regions: AmbiguousRegions, winners: list[int], whole_window: bool) -> tuple[Tensor, Tensor]:
    """Maps [class, window, row, column] of two windows of 4 x 4 patches before and after losers are removed."""
    maps = torch.arange(1, 97, dtype=torch.float32).view(3, 2, 16).transpose(0, 1)
    kept = ClassMaps(Units.of((2,)), torch.from_numpy(CLASSES), maps)
    found = remove_losers(kept, regions, torch.tensor(winners), CLASSES, 16, (4, 4), whole_window)
    return (part.maps.transpose(0, 1).unflatten(2, (4, 4)) for part in (kept, found))  # type: ignore[return-value]


def test_the_nearest_description_among_the_candidates_wins() -> None:
    descriptions = torch.eye(4)
    crops = torch.tensor([[0.9, 0.5, 0.1, 0.0], [0.9, 0.5, 0.6, 0.0], [0.0, 0.0, 0.0, 1.0]])
    candidates = torch.tensor([[0, 1, -1, -1], [1, 2, -1, -1], [0, 1, 2, 3]])
    assert pick_winners(crops, descriptions, candidates).tolist() == [0, 1, 3]


def test_the_first_of_equally_near_candidates_wins() -> None:
    assert pick_winners(torch.ones(1, 3), torch.eye(3), torch.tensor([[1, 2]])).tolist() == [0]


def test_a_released_loser_vanishes_from_its_window_only() -> None:
    before, found = after(regions_of(1, (0, 0, 16, 16)), [1], whole_window=True)
    assert not found[0, 1].any()
    assert torch.equal(found[0, 0], before[0, 0])
    assert torch.equal(found[1:], before[1:])


def test_released_classes_that_win_one_box_each_both_stay() -> None:
    before, found = after(regions_of(0, (0, 0, 16, 16), (32, 32, 48, 48)), [1, 0], whole_window=True)
    assert torch.equal(found, before)


def test_a_degenerate_box_lets_the_whole_released_group_stay() -> None:
    before, found = after(regions_of(0, (0, 0, 16, 16), (0, 48, 16, 48)), [1], whole_window=True)
    assert torch.equal(found, before)


def test_a_paper_loser_vanishes_from_the_box_only() -> None:
    before, found = after(regions_of(0, (16, 0, 48, 16), (0, 48, 16, 48)), [1], whole_window=False)
    expected = before.clone()
    expected[0, 0, 0, 1:3] = 0
    assert torch.equal(found, expected)


def test_the_maps_given_are_not_changed() -> None:
    for whole_window in (True, False):
        before, _ = after(regions_of(0, (0, 0, 16, 16)), [1], whole_window)
        assert torch.equal(before, torch.arange(1, 97, dtype=torch.float32).view(3, 2, 4, 4))


def test_groups_of_two_images_do_not_touch_each_other() -> None:
    classes = np.array([[2, 5, 9], [5, 7, -1]])
    maps = torch.ones(3, 3, 4)
    kept = ClassMaps(Units.of((2, 1)), torch.from_numpy(classes), maps)
    regions = AmbiguousRegions(
        np.array([0, 1]),
        np.array([1, 0]),
        np.array([0, 1]),
        np.array([[0, 0, 16, 16]] * 2),
        np.array([[2, 5, 9], [5, 7, -1]]),
    )
    found = remove_losers(kept, regions, torch.tensor([2, 0]), classes, 16, (2, 2), whole_window=True).maps
    assert found.any(2).tolist() == [[True, True, True], [False, False, True], [True, False, True]]


def test_an_image_winner_takes_the_places_of_its_group_in_the_box() -> None:
    edits = LabelEdits.of_regions(regions_of(-1, (1, 0, 3, 2)), torch.tensor([1]), CLASSES, [(2.0, 2.0)])
    assert edits.boxes.tolist() == [[[2, 0, 6, 4]]]
    assert edits.places.tolist() == [[[1, 1, 2]]]


def test_the_smallest_of_nested_boxes_decides_last() -> None:
    regions = regions_of(-1, (1, 1, 2, 2), (0, 0, 4, 4))
    edits = LabelEdits.of_regions(regions, torch.tensor([0, 1]), CLASSES, [(1.0, 1.0)])
    assert edits.boxes[:, 0].tolist() == [[0, 0, 4, 4], [1, 1, 2, 2]]
    assert edits.places[:, 0].tolist() == [[1, 1, 2], [0, 0, 2]]


def test_regions_without_area_edit_nothing() -> None:
    regions = regions_of(-1, (0, 0, 0, 0), (0, 0, 4, 4))
    edits = LabelEdits.of_regions(regions, torch.tensor([1]), CLASSES, [(1.0, 1.0)])
    assert edits.boxes.tolist() == [[[0, 0, 4, 4]]]


def test_images_with_fewer_edits_have_empty_boxes() -> None:
    classes = np.array([[2, 5, 9], [2, 5, -1], [5, 7, -1]])
    regions = AmbiguousRegions(
        np.array([0, 0, 2]),
        np.full(3, -1),
        np.array([0, 0, 1]),
        np.array([[0, 0, 2, 2], [0, 0, 9, 9], [1, 1, 5, 5]]),
        np.array([[2, 9], [5, 7]]),
    )
    edits = LabelEdits.of_regions(regions, torch.tensor([0, 1, 1]), classes, [(1.0, 1.0)] * 3)
    assert edits.boxes[:, 1].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    assert edits.boxes[:, 2].tolist() == [[1, 1, 5, 5], [0, 0, 0, 0]]
    assert edits.places[:, 0].tolist() == [[2, 1, 2], [0, 1, 0]]
    assert edits.places[0, 2].tolist() == [1, 1, 2]
    assert edits.of_images(slice(2, 3)).boxes.tolist() == edits.boxes[:, 2:].tolist()


def test_boxes_follow_the_image_to_another_size() -> None:
    assert scale_boxes(np.array([[16, 32, 48, 64]]), np.array([[2.0, 1.5]])).tolist() == [[24, 64, 72, 128]]


@pytest.mark.parametrize("window", [-1, 1])
def test_boxes_of_windows_lie_where_the_window_does(window: int) -> None:
    found = regions_of(window, (1, 2, 3, 4)).on_image([[(0, 0), (10, 20)]])
    assert found.tolist() == [[1, 2, 3, 4] if window < 0 else [21, 12, 23, 14]]


@given(st.integers(-3, 3), st.integers(-3, 3))
def test_boxes_without_pixels_have_no_area(width: int, height: int) -> None:
    found = regions_of(-1, (5, 5, 5 + width, 5 + height)).has_area.tolist()
    assert found == [width > 0 and height > 0]
