import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovss_core.class_purification.class_maps import ClassMaps
from ovss_core.class_purification.groups import (
    AmbiguousGroups,
    connected_parts,
    find_ambiguous,
    soft_iou,
)
from ovss_core.class_purification.placement import Placement
from ovss_core.class_purification.room import Room
from ovss_core.config import PurificationConfig
from tests import oracles_freecp as oracle

PATCH = 8


def groups_of(
    maps: torch.Tensor,
    threshold: float,
    classes: list[int] | None = None,
    excluded: int | None = None,
    room: Room | None = None,
    variant: str = "image",
) -> AmbiguousGroups:
    """Find the groups of one image of one window, one map of a row of patches a class."""
    names = classes if classes is not None else list(range(len(maps)))
    side = (PATCH, PATCH * maps.shape[1])
    place = Placement.of((1,), ((0, 0),), (side,), (1, maps.shape[1]), PATCH, side)
    config = PurificationConfig(variant=variant)  # type: ignore[arg-type]
    kept = ClassMaps(place.images, torch.tensor([names]), maps[None])
    return find_ambiguous(place, kept, config, threshold, excluded, room)


def members_of(groups: AmbiguousGroups) -> list[tuple[int, ...]]:
    rows = groups.members[0].tolist()
    return [tuple(index for index in row if index >= 0) for row in rows if max(row, default=-1) >= 0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_soft_iou_is_minima_over_maxima(count: int, seed: int) -> None:
    maps = torch.rand(1, count, 15, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    maps[0, 0] *= seed % 2
    found = soft_iou(maps)[0]
    for i in range(count):
        for j in range(count):
            expected = oracle.soft_iou(maps[0, i].numpy(), maps[0, j].numpy())
            assert found[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_identical_maps_form_one_group() -> None:
    maps = torch.tensor([[0.0, 1, 0.5]] * 3)
    assert members_of(groups_of(maps, 1.0, [4, 7, 9])) == [(4, 7, 9)]


def test_a_soft_iou_exactly_at_the_threshold_joins() -> None:
    maps = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1]])
    assert members_of(groups_of(maps, 0.75)) == [(0, 1)]
    assert members_of(groups_of(maps, 0.7500001)) == []


def test_a_chain_is_one_group_by_single_linkage() -> None:
    maps = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert members_of(groups_of(maps, 0.3)) == [(0, 1, 2)]


def test_groups_come_by_their_first_class() -> None:
    maps = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    assert members_of(groups_of(maps, 0.5)) == [(0, 3), (1, 2)]


def test_unused_places_join_no_group() -> None:
    maps = torch.tensor([[1.0, 0], [1.0, 0], [0, 0]])
    assert members_of(groups_of(maps, 0.0, [3, 5, -1])) == [(3, 5)]


def test_an_excluded_class_is_never_ambiguous() -> None:
    maps = torch.ones(3, 2)
    assert members_of(groups_of(maps, 0.5, excluded=1)) == [(0, 2)]


@pytest.mark.parametrize("seed", range(20))
def test_places_that_are_given_hold_the_groups_that_are_counted(seed: int) -> None:
    maps = torch.rand(7, 9, generator=torch.Generator().manual_seed(seed)) ** 3
    counted, placed = (groups_of(maps, 0.3, room=room) for room in (None, Room(groups=5, boxes=9)))
    assert placed.complete
    assert members_of(counted) == members_of(placed)
    for group in range(len(members_of(counted))):
        found, given_places = (
            groups.boxes[0, group][groups.used[0, group]].tolist() for groups in (counted, placed)
        )
        assert found == given_places


def test_more_groups_or_boxes_than_places_are_said_to_be_incomplete() -> None:
    maps = torch.tensor([[1.0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]])
    assert groups_of(maps, 0.5, room=Room(groups=2, boxes=2)).complete
    assert not groups_of(maps, 0.5, room=Room(groups=1, boxes=2)).complete
    assert not groups_of(maps, 0.5, room=Room(groups=2, boxes=1)).complete


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10_000))
def test_components_are_those_of_a_depth_first_search(nodes: int, seed: int) -> None:
    draw = torch.rand(1, nodes, nodes, generator=torch.Generator().manual_seed(seed)) > 0.8
    edges = draw | draw.mT
    labels = connected_parts(edges)[0].tolist()
    expected = list(range(nodes))
    for _ in range(nodes):
        for i in range(nodes):
            for j in range(nodes):
                if edges[0, i, j]:
                    expected[i] = expected[j] = min(expected[i], expected[j])
    assert labels == expected


def test_a_long_path_is_one_component() -> None:
    nodes = 65
    edges = torch.zeros(1, nodes, nodes, dtype=torch.bool)
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(0))
    edges[0, order[:-1], order[1:]] = True
    assert not connected_parts(edges | edges.mT).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 14), st.integers(0, 20), st.integers(0, 1000))
def test_boxes_of_an_image_are_those_of_its_windows_averaged_by_area(
    down: int, right: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = torch.rand(2, 6, generator=generator) ** 2
    image, origins = (16 + down, 24 + right), ((0, 0), (down, right))
    maps = torch.stack([shape, shape], 1)  # two classes that coincide
    place = Placement.of((2,), origins, (image,), (2, 3), PATCH, (16, 24))
    kept = ClassMaps(place.images, torch.tensor([[0, 1]]), maps)
    found = find_ambiguous(place, kept, PurificationConfig(), 0.9)
    lattice = oracle.lattice_mean(
        shape.double().numpy().reshape(2, 2, 3), list(origins), (16, 24), image, PATCH
    )
    levels = 255 * lattice
    if np.abs(levels - np.rint(levels)).min() < 1e-6:  # a level on a whole number may fall to either side
        return
    boxes = oracle.boxes(oracle.region(lattice, 0.4), exclude_last=False)
    expected = {
        (x0 * PATCH, y0 * PATCH, min(x1 * PATCH, image[1]), min(y1 * PATCH, image[0]))
        for x0, y0, x1, y1 in boxes
    }
    assert set(map(tuple, found.boxes[0, 0][found.used[0, 0]].tolist())) == expected


def test_a_group_with_an_empty_mean_map_has_one_degenerate_box() -> None:
    found = groups_of(torch.zeros(2, 3), 0.0)
    assert members_of(found) == [(0, 1)]
    assert found.boxes[0, 0][found.used[0, 0]].tolist() == [[0, 0, 0, 0]]
