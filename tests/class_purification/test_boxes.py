import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ovss_core.class_purification.boxes import (
    Boxes,
    box_masks,
    component_boxes,
    component_labels,
    paint_boxes,
    quantise,
    threshold_regions,
)
from tests import oracles_freecp as oracle

MASKS = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


def boxes_of(found: Boxes, index: int) -> set[tuple[int, ...]]:
    return {tuple(corners) for corners in found.corners[found.map_index == index].tolist()}


def drawn(*rows: str) -> torch.Tensor:
    return torch.tensor([[cell == "#" for cell in row] for row in rows])[None]


@settings(max_examples=150, deadline=None)
@given(MASKS, st.booleans(), st.booleans())
def test_boxes_of_many_maps_are_those_found_by_flooding_each(
    masks: np.ndarray, exclude_last: bool, holes: bool
) -> None:
    found = component_boxes(torch.from_numpy(masks), exclude_last, holes)
    for index, mask in enumerate(masks):
        assert boxes_of(found, index) == oracle.boxes(mask, exclude_last, holes)


@settings(max_examples=50, deadline=None)
@given(MASKS, st.booleans())
def test_every_part_gets_one_label_of_its_own(masks: np.ndarray, diagonal: bool) -> None:
    labels = component_labels(torch.from_numpy(masks), diagonal).numpy()
    for mask, found in zip(masks, labels, strict=True):
        parts = oracle.flood(mask, diagonal)
        names = [{int(found[pixel]) for pixel in part} for part in parts]
        assert all(len(name) == 1 for name in names)
        assert len(set.union(set(), *names)) == len(parts)
        assert not found[~mask].any()


def test_a_snake_over_the_whole_map_is_one_part() -> None:
    snake = np.zeros((31, 31), dtype=bool)
    snake[::2] = True
    for row in range(1, 31, 2):
        snake[row, -1 if row % 4 == 1 else 0] = True
    labels = component_labels(torch.from_numpy(snake)[None])
    assert len(labels.unique()) == 2


def test_diagonal_neighbours_are_one_part() -> None:
    found = component_boxes(drawn("#....", ".#...", ".....", "...#.", "....."))
    assert boxes_of(found, 0) == {(0, 0, 2, 2), (3, 3, 4, 4)}


def test_the_last_row_and_column_are_never_covered() -> None:
    maps = drawn("....", "..##", "..##", "...#").float()
    expected = drawn("....", "..#.", "..#.", "....")
    assert torch.equal(box_masks(maps, 0.4), expected)


def test_a_part_only_in_the_last_row_leaves_a_degenerate_box_and_an_empty_mask() -> None:
    maps = drawn("...", "...", "##.")
    assert boxes_of(component_boxes(maps), 0) == {(0, 2, 2, 2)}
    assert not box_masks(maps.float(), 0.4).any()


def test_the_last_row_counts_when_asked() -> None:
    maps = drawn("...", "...", "##.")
    assert boxes_of(component_boxes(maps, exclude_last=False), 0) == {(0, 2, 2, 3)}


def test_an_axis_of_one_patch_is_kept() -> None:
    assert box_masks(torch.tensor([[[0.1, 0.9, 0.8, 0.0]]]), 0.4).tolist() == [[[False, True, True, False]]]


def test_a_hole_adds_the_box_of_its_rim() -> None:
    ring = drawn("......", ".####.", ".#..#.", ".####.", "......", "......")
    assert boxes_of(component_boxes(ring), 0) == {(1, 1, 5, 4)}
    solid = drawn("#####.", "#####.", "##.##.", "#####.", "#####.", "......")
    assert boxes_of(component_boxes(solid, holes=True), 0) == {(0, 0, 5, 5), (1, 1, 4, 4)}


def test_an_empty_map_has_no_box() -> None:
    found = component_boxes(torch.zeros(3, 4, 4, dtype=torch.bool))
    assert len(found.map_index) == 0
    assert not box_masks(torch.zeros(3, 4, 4), 0.4).any()


def test_no_map_at_all_is_fine() -> None:
    assert box_masks(torch.zeros(0, 4, 4), 0.4).shape == (0, 4, 4)


def test_the_threshold_is_strict_on_truncated_levels() -> None:
    levels = torch.tensor([[[100, 41, 40, 39]]])
    assert threshold_regions(levels, torch.tensor([100]), 0.4).tolist() == [[[True, True, False, False]]]


def test_levels_are_truncated_not_rounded() -> None:
    assert quantise(torch.tensor([0.0, 0.00391, 0.00394, 0.999, 1.0])).tolist() == [0, 0, 1, 254, 255]


def test_a_map_below_one_level_of_a_larger_peak_has_no_region() -> None:
    maps = torch.full((2, 3, 3), 0.2)
    assert not box_masks(maps, 0.4, torch.tensor([255, 255])).any()
    assert box_masks(maps, 0.4).any()


def test_overlapping_boxes_paint_their_union() -> None:
    corners = torch.tensor([[0, 0, 3, 2], [2, 1, 4, 4], [1, 1, 1, 4]])
    painted = paint_boxes(Boxes(torch.tensor([0, 0, 1]), corners), (2, 4, 4))
    assert torch.equal(painted[:1], drawn("###.", "####", "..##", "..##"))
    assert not painted[1].any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_masks_of_score_maps_are_those_of_the_rule_written_out(seed: int) -> None:
    maps = torch.rand(4, 6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    found = box_masks(maps, 0.4).numpy()
    for index in range(4):
        np.testing.assert_array_equal(found[index], oracle.box_mask(maps[index].numpy(), 0.4))
