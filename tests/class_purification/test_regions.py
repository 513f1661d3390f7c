import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ovss_core.class_purification import regions as regions_module
from ovss_core.class_purification.regions import Boxes, bound_parts, box_union, quantize, threshold_regions
from tests import oracles_freecp as oracle

MASKS = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


def boxes_of(found: Boxes, index: int) -> set[tuple[int, ...]]:
    return {tuple(corners) for corners in found.corners[index][found.used[index]].tolist()}


def drawn(*rows: str) -> torch.Tensor:
    return torch.tensor([[cell == "#" for cell in row] for row in rows])[None]


def masks_of(maps: torch.Tensor, share: float, peaks: torch.Tensor | None = None) -> torch.Tensor:
    levels = quantize(maps).flatten(1)
    own = levels.amax(1) if peaks is None else peaks
    return box_union(threshold_regions(levels, own, share).view_as(maps))


@pytest.mark.parametrize("capacity", [None, 81])
@settings(max_examples=100, deadline=None)
@given(masks=MASKS, exclude_last=st.booleans(), holes=st.booleans())
def test_boxes_of_many_maps_are_those_found_by_flooding_each(
    capacity: int | None, masks: np.ndarray, exclude_last: bool, holes: bool
) -> None:
    found = bound_parts(torch.from_numpy(masks), exclude_last, holes, capacity)
    assert found.complete
    for index, mask in enumerate(masks):
        assert boxes_of(found, index) == oracle.boxes(mask, exclude_last, holes)
        assert found.without_repetitions().used[index].sum() == len(boxes_of(found, index))


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_boxes_come_in_one_order_whether_they_are_counted_or_have_their_places(masks: np.ndarray) -> None:
    counted, placed = (bound_parts(torch.from_numpy(masks), False, capacity=most) for most in (None, 81))
    most = counted.used.shape[1]
    assert torch.equal(counted.corners, placed.corners[:, :most])
    assert torch.equal(counted.used, placed.used[:, :most])


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_the_union_of_boxes_is_the_same_on_a_gpu(masks: np.ndarray) -> None:
    given_masks = torch.from_numpy(masks)
    assert torch.equal(box_union(given_masks), regions_module._union_on_device(given_masks))


def test_too_many_parts_for_their_places_are_said_to_be_incomplete() -> None:
    dots = drawn("#.#.#", ".....", "#.#.#")
    assert not bound_parts(dots, False, capacity=5).complete
    assert bound_parts(dots, False, capacity=6).complete


def test_a_snake_over_the_whole_map_is_one_part_or_said_to_be_incomplete() -> None:
    snake = np.zeros((31, 31), dtype=bool)
    snake[::2] = True
    for row in range(1, 31, 2):
        snake[row, -1 if row % 4 == 1 else 0] = True
    assert boxes_of(bound_parts(torch.from_numpy(snake)[None], False), 0) == {(0, 0, 31, 31)}
    placed = bound_parts(torch.from_numpy(snake)[None], False, capacity=4)
    assert not placed.complete or boxes_of(placed, 0) == {(0, 0, 31, 31)}


def test_diagonal_neighbors_are_one_part() -> None:
    found = bound_parts(drawn("#....", ".#...", ".....", "...#.", "....."))
    assert boxes_of(found, 0) == {(0, 0, 2, 2), (3, 3, 4, 4)}


def test_the_last_row_and_column_are_never_covered() -> None:
    maps = drawn("....", "..##", "..##", "...#").float()
    expected = drawn("....", "..#.", "..#.", "....")
    assert torch.equal(masks_of(maps, 0.4), expected)


def test_a_part_only_in_the_last_row_leaves_a_degenerate_box_and_an_empty_mask() -> None:
    maps = drawn("...", "...", "##.")
    assert boxes_of(bound_parts(maps), 0) == {(0, 2, 2, 2)}
    assert not masks_of(maps.float(), 0.4).any()


def test_the_last_row_counts_when_asked() -> None:
    maps = drawn("...", "...", "##.")
    assert boxes_of(bound_parts(maps, exclude_last=False), 0) == {(0, 2, 2, 3)}


def test_an_axis_of_one_patch_is_kept() -> None:
    assert masks_of(torch.tensor([[[0.1, 0.9, 0.8, 0.0]]]), 0.4).tolist() == [[[False, True, True, False]]]


def test_a_hole_adds_the_box_of_its_rim() -> None:
    ring = drawn("......", ".####.", ".#..#.", ".####.", "......", "......")
    assert boxes_of(bound_parts(ring), 0) == {(1, 1, 5, 4)}
    solid = drawn("#####.", "#####.", "##.##.", "#####.", "#####.", "......")
    assert boxes_of(bound_parts(solid, holes=True), 0) == {(0, 0, 5, 5), (1, 1, 4, 4)}


def test_an_empty_map_has_no_box() -> None:
    found = bound_parts(torch.zeros(3, 4, 4, dtype=torch.bool))
    assert not found.used.any()
    assert not masks_of(torch.zeros(3, 4, 4), 0.4).any()


def test_no_map_at_all_is_fine() -> None:
    assert masks_of(torch.zeros(0, 4, 4), 0.4).shape == (0, 4, 4)


def test_the_threshold_is_strict_on_truncated_levels() -> None:
    levels = torch.tensor([[100, 41, 40, 39]], dtype=torch.int16)
    assert threshold_regions(levels, torch.tensor([100]), 0.4).tolist() == [[True, True, False, False]]


def test_levels_are_truncated_not_rounded() -> None:
    assert quantize(torch.tensor([0.0, 0.00391, 0.00394, 0.999, 1.0])).tolist() == [0, 0, 1, 254, 255]


def test_a_map_below_one_level_of_a_larger_peak_has_no_region() -> None:
    maps = torch.full((2, 3, 3), 0.2)
    assert not masks_of(maps, 0.4, torch.tensor([255, 255])).any()
    assert masks_of(maps, 0.4).any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_masks_of_score_maps_are_those_of_the_rule_written_out(seed: int) -> None:
    maps = torch.rand(4, 6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    found = masks_of(maps, 0.4).numpy()
    for index in range(4):
        np.testing.assert_array_equal(found[index], oracle.box_mask(maps[index].numpy(), 0.4))
