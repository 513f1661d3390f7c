import torch
from hypothesis import given
from hypothesis import strategies as st

from ovss_core.class_purification.winners import (
    BoxEdit,
    GroupProposal,
    ImagePurification,
    apply_box_edits,
    is_degenerate,
    pick_winners,
    resolve_groups,
)


def purification(window: int | None, *boxes: tuple[int, int, int, int]) -> ImagePurification:
    """Classes 2, 5 and 9 kept in two windows of 4x4 patches; 2 and 5 are ambiguous."""
    maps = torch.arange(1, 97, dtype=torch.float32).view(3, 2, 4, 4)
    group = GroupProposal((2, 5), window, boxes)
    return ImagePurification(torch.zeros(10), torch.tensor([2, 5, 9]), maps, (group,))


def test_the_nearest_description_among_the_candidates_wins() -> None:
    descriptions = torch.eye(4)
    crops = torch.tensor([[0.9, 0.5, 0.1, 0.0], [0.9, 0.5, 0.6, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert pick_winners(crops, descriptions, [(0, 1), (1, 2), (0, 1, 2, 3)]) == [0, 2, 3]


def test_the_first_of_equally_near_candidates_wins() -> None:
    assert pick_winners(torch.ones(1, 3), torch.eye(3), [(1, 2)]) == [1]


def test_no_crop_has_no_winner() -> None:
    assert pick_winners(torch.zeros(0, 3), torch.eye(3), []) == []


def test_a_released_loser_vanishes_from_its_window_only() -> None:
    given_maps = purification(1, (0, 0, 16, 16))
    maps, edits = resolve_groups(given_maps, [[5]], "released", 16)
    assert edits == ()
    assert not maps[0, 1].any()
    assert torch.equal(maps[0, 0], given_maps.maps[0, 0])
    assert torch.equal(maps[1:], given_maps.maps[1:])


def test_released_classes_that_win_one_box_each_both_stay() -> None:
    given_maps = purification(0, (0, 0, 16, 16), (32, 32, 48, 48))
    maps, _ = resolve_groups(given_maps, [[5, 2]], "released", 16)
    assert torch.equal(maps, given_maps.maps)


def test_a_degenerate_box_lets_the_whole_released_group_stay() -> None:
    given_maps = purification(0, (0, 0, 16, 16), (0, 48, 16, 48))
    maps, _ = resolve_groups(given_maps, [[5, None]], "released", 16)
    assert torch.equal(maps, given_maps.maps)


def test_a_paper_loser_vanishes_from_the_box_only() -> None:
    given_maps = purification(0, (16, 0, 48, 16), (0, 48, 16, 48))
    maps, _ = resolve_groups(given_maps, [[5, None]], "paper", 16)
    expected = given_maps.maps.clone()
    expected[0, 0, 0, 1:3] = 0
    assert torch.equal(maps, expected)


def test_the_maps_given_are_not_changed() -> None:
    given_maps = purification(0, (0, 0, 16, 16))
    before = given_maps.maps.clone()
    resolve_groups(given_maps, [[5]], "released", 16)
    resolve_groups(given_maps, [[5]], "paper", 16)
    assert torch.equal(given_maps.maps, before)


def test_an_image_winner_takes_the_largest_score_of_its_group_in_the_box() -> None:
    given_maps = purification(None, (1, 0, 3, 2))
    maps, edits = resolve_groups(given_maps, [[5]], "image", 16)
    assert torch.equal(maps, given_maps.maps)
    scores = torch.tensor([[[1.0, 4, 1], [1, 1, 1]], [[2, 2, 2], [2, 2, 2]], [[9, 9, 9], [9, 9, 9]]])
    found = apply_box_edits(scores.clone(), 0, edits)
    assert found[0].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert found[1].tolist() == [[2, 4, 2], [2, 2, 2]]
    assert torch.equal(found[2], scores[2])


def test_the_smallest_of_nested_boxes_decides_last() -> None:
    given_maps = purification(None, (1, 1, 2, 2), (0, 0, 4, 4))
    _, edits = resolve_groups(given_maps, [[2, 5]], "image", 16)
    found = apply_box_edits(torch.ones(3, 4, 4), 0, edits)
    assert found[0].sum() == 1
    assert found[0, 1, 1] == 1
    assert found[1, 1, 1] == 0


@given(st.integers(1, 6), st.integers(0, 1000))
def test_strips_are_edited_as_the_whole_image_is(height: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, 12, 9, generator=generator)
    edits = []
    for winner in (0, 2):
        x0, y0 = (int(torch.randint(0, 8, (), generator=generator)) for _ in range(2))
        edits.append(BoxEdit((x0, y0, x0 + 3, y0 + 6), winner, (0, 2)))
    whole = apply_box_edits(scores.clone(), 0, edits)
    strips = [
        apply_box_edits(scores[:, top : top + height].clone(), top, edits) for top in range(0, 12, height)
    ]
    assert torch.equal(torch.cat(strips, 1), whole)


def test_edits_follow_the_image_to_another_size() -> None:
    edit = BoxEdit((16, 32, 48, 64), 0, (0, 1)).scaled((64, 96), (128, 144))
    assert edit.box == (24, 64, 72, 128)


def test_boxes_without_pixels_are_degenerate() -> None:
    assert is_degenerate((0, 0, 0, 0))
    assert is_degenerate((3, 1, 2, 9))
    assert not is_degenerate((0, 0, 1, 1))
