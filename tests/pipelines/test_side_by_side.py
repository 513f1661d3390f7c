"""Many small reads by threads."""

from collections.abc import Iterator
from itertools import islice

import pytest

from pipelines.run.side_by_side import in_order


def test_results_come_in_order_and_few_items_are_taken_before_they_are_asked_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_order(lambda number: number**2, items(), 2)
    assert list(islice(results, 5)) == [0, 1, 4, 9, 16]
    assert len(taken) < 25
    assert list(results) == [number**2 for number in range(5, 1000)]


def test_an_error_comes_in_the_place_of_its_item_and_what_waits_is_given_up() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            raise ValueError(number)
        return number

    results = in_order(work, range(100), 1)
    assert next(results) == 0
    with pytest.raises(ValueError, match="1"):
        next(results)
    assert len(begun) <= 10
