import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovss_core.class_purification.class_maps import NOBODY, ClassMaps
from ovss_core.class_purification.placement import Units

COUNTS = st.lists(st.integers(1, 3), min_size=1, max_size=4)


def dense_of(maps: ClassMaps, classes: int) -> torch.Tensor:
    """Every class's map in every window, 0 where the window's unit has no place for it: [windows, classes, patches]."""
    dense = torch.zeros(maps.maps.shape[0], classes, maps.maps.shape[2])
    for window, unit in enumerate(maps.units.index.tolist()):
        for place, index in enumerate(maps.classes[unit].tolist()):
            if index != NOBODY:
                dense[window, index] = maps.maps[window, place]
    return dense


def random_table(counts: list[int], classes: int, seed: int) -> tuple[ClassMaps, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(classes, sum(counts), 5, generator=generator) + 0.1
    wanted = torch.rand(len(counts), classes, generator=generator) > 0.5
    units = Units.of(counts)
    return ClassMaps.gather(units, torch.arange(classes), values, wanted), values, wanted


def expected(values: torch.Tensor, wanted: torch.Tensor, units: Units) -> torch.Tensor:
    return values.transpose(0, 1) * wanted[units.index][:, :, None]


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 6), st.integers(0, 999))
def test_each_unit_takes_what_it_wants_and_no_more_places_than_the_fullest_needs(
    counts: list[int], classes: int, seed: int
) -> None:
    maps, values, wanted = random_table(counts, classes, seed)
    assert torch.equal(dense_of(maps, classes), expected(values, wanted, maps.units))
    assert maps.places == int(wanted.sum(1).max())
    assert not maps.maps[~maps.to_windows(maps.used)].any()


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 6), st.integers(0, 999))
def test_places_that_are_given_hold_the_same_as_those_that_are_counted(
    counts: list[int], classes: int, seed: int
) -> None:
    maps, values, wanted = random_table(counts, classes, seed)
    given_places = ClassMaps.gather(maps.units, torch.arange(classes), values, wanted, capacity=classes)
    assert given_places.places == classes
    assert torch.equal(dense_of(given_places, classes), dense_of(maps, classes))


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 6), st.integers(0, 999))
def test_selecting_and_joining_loses_nothing(counts: list[int], classes: int, seed: int) -> None:
    maps, values, wanted = random_table(counts, classes, seed)
    even = maps.used & (maps.classes % 2 == 0)
    parts = [maps.select(~even), maps.select(even)]
    joined = ClassMaps.join(parts)
    assert torch.equal(dense_of(joined, classes), expected(values, wanted, maps.units))
    for row in joined.classes.tolist():
        named = [index for index in row if index != NOBODY]
        assert named == sorted(named)
        assert row[: len(named)] == named


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 6), st.integers(0, 999))
def test_an_image_has_what_any_of_its_windows_has(counts: list[int], classes: int, seed: int) -> None:
    windows, _, wanted = random_table([1] * sum(counts), classes, seed)
    images = Units.of(counts)
    found = windows.by_image(images, classes)
    assert torch.equal(dense_of(found, classes), dense_of(windows, classes))
    for image, row in enumerate(found.classes.tolist()):
        anywhere = wanted[images.index == image].any(0).nonzero()[:, 0].tolist()
        assert [index for index in row if index != NOBODY] == anywhere


def test_units_reduce_over_their_own_windows() -> None:
    units = Units.of((2, 1, 3))
    values = torch.tensor([1.0, 5, 2, -3, -1, -2])
    assert units.reduce(values, "amax").tolist() == [5, 2, -1]
    assert units.reduce(values, "amin").tolist() == [1, 2, -3]
    assert units.reduce(values[:, None], "sum").tolist() == [[6], [2], [-6]]


def test_windows_of_a_unit_are_laid_side_by_side_with_nothing_behind_the_last() -> None:
    maps = ClassMaps(Units.of((1, 2)), torch.tensor([[3], [1]]), torch.tensor([[[1.0]], [[2.0]], [[3.0]]]))
    assert maps.by_unit()[:, 0, :, 0].tolist() == [[1, 0], [2, 3]]


@pytest.mark.parametrize("how", ["amin", "amax"])
def test_extremes_and_totals_are_over_the_whole_unit(how: str) -> None:
    maps, values, _ = random_table([2, 3], 1, 3)
    every = ClassMaps.gather(maps.units, torch.tensor([0]), values, torch.ones(2, 1, dtype=torch.bool))
    first, second = values[0, :2], values[0, 2:]
    assert every.extreme(how)[:, 0].tolist() == [getattr(first, how)().item(), getattr(second, how)().item()]
    torch.testing.assert_close(
        every.total()[:, 0], torch.stack([first.double().sum(), second.double().sum()])
    )
