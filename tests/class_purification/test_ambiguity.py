import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovss_core.class_purification.ambiguity import (
    AmbiguousGroups,
    KeptMaps,
    connected_groups,
    find_groups,
    group_boxes,
    lay_on_lattice,
    pad_kept,
    soft_iou,
)
from ovss_core.class_purification.batch import Units
from tests import oracles_freecp as oracle


def kept(maps: torch.Tensor, classes: list[int] | None = None) -> KeptMaps:
    """One unit of one window."""
    names = classes if classes is not None else list(range(len(maps)))
    return KeptMaps(torch.tensor([names]), maps[None, :, None])


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
    assert find_groups(kept(maps, [4, 7, 9]), 1.0).members == ((4, 7, 9),)


def test_a_soft_iou_exactly_at_the_threshold_joins() -> None:
    maps = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1]])
    assert find_groups(kept(maps), 0.75).members == ((0, 1),)
    assert find_groups(kept(maps), 0.7500001).members == ()


def test_a_chain_is_one_group_by_single_linkage() -> None:
    maps = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert find_groups(kept(maps), 0.3).members == ((0, 1, 2),)


def test_padding_joins_no_group() -> None:
    maps = torch.tensor([[1.0, 0], [1.0, 0], [0, 0]])
    assert find_groups(kept(maps, [3, 5, -1]), 0.0).members == ((3, 5),)


def test_an_excluded_class_is_never_ambiguous() -> None:
    maps = torch.ones(3, 2)
    assert find_groups(kept(maps), 0.5, excluded=1).members == ((0, 2),)


def test_a_group_carries_the_mean_of_its_maps() -> None:
    maps = torch.tensor([[1.0, 0.5, 0], [0.5, 0.5, 0.25]])
    torch.testing.assert_close(
        find_groups(kept(maps), 0.1).maps[0, 0], torch.tensor([0.75, 0.5, 0.125], dtype=torch.float64)
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10_000))
def test_components_are_those_of_a_depth_first_search(nodes: int, seed: int) -> None:
    draw = torch.rand(1, nodes, nodes, generator=torch.Generator().manual_seed(seed)) > 0.8
    edges = draw | draw.mT
    labels = connected_groups(edges)[0].tolist()
    expected = list(range(nodes))
    for _ in range(nodes):
        for i in range(nodes):
            for j in range(nodes):
                if edges[0, i, j]:
                    expected[i] = expected[j] = min(expected[i], expected[j])
    assert labels == expected


def test_rows_in_any_order_are_padded_by_unit_and_class() -> None:
    units = Units(torch.tensor([0, 0, 1]), 2)
    maps = torch.arange(1.0, 5.0)[:, None]
    padded = pad_kept(
        torch.tensor([0, 1, 0, 0]), torch.tensor([1, 2, 0, 0]), torch.tensor([8, 3, 8, 2]), maps, units
    )
    assert padded.classes.tolist() == [[2, 8], [3, -1]]
    assert padded.maps[..., 0].tolist() == [[[4, 0], [3, 1]], [[2, 0], [0, 0]]]


def test_the_lattice_of_one_window_is_its_own_grid() -> None:
    maps = torch.rand(1, 1, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = AmbiguousGroups(torch.tensor([0]), ((0, 1),), maps)
    units = Units(torch.tensor([0]), 1)
    found = lay_on_lattice(groups, units, torch.tensor([[0, 0]]), (48, 64), (3, 4), (48, 64), 16)
    torch.testing.assert_close(found[0], maps[0, 0].view(3, 4))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 14), st.integers(0, 20), st.integers(0, 1000))
def test_windows_average_on_the_lattice_by_area(down: int, right: int, seed: int) -> None:
    maps = torch.rand(1, 2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    image = (16 + down, 24 + right)
    origins = torch.tensor([[0, 0], [down, right]])
    groups = AmbiguousGroups(torch.tensor([0]), ((0, 1),), maps)
    found = lay_on_lattice(groups, Units(torch.tensor([0, 0]), 1), origins, (16, 24), (2, 3), image, 8)
    expected = oracle.lattice_mean(maps[0].view(2, 2, 3).numpy(), [(0, 0), (down, right)], (16, 24), image, 8)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-12)


def test_an_empty_mean_map_has_one_degenerate_box() -> None:
    assert group_boxes(torch.zeros(1, 3, 3), 0.4, exclude_last=True, holes=True) == [((0, 0, 0, 0),)]


def test_repeated_boxes_are_given_once() -> None:
    ring = torch.ones(1, 3, 3)
    ring[0, 1, 1] = 0
    assert group_boxes(ring, 0.4, exclude_last=False, holes=True) == [((0, 0, 3, 3),)]
