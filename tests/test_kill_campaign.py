"""How the kill campaign judges a run; killing itself takes minutes and is a command."""

from dataclasses import fields, replace
from typing import Any

import pytest

from tests.kill_campaign import COUNTS, Trial, as_markdown, compare_rows

MASKS = {"a": b"1", "b": b"2", "c": b"3"}
SOUND = Trial(0, "folder", "driver", 3.2, 2, 0, 0, 0, 0, 0, True)


def labelled(**masks: bytes) -> list[dict[str, Any]]:
    return [{"image_id": name, "mask": mask} for name, mask in masks.items()]


def test_rows_that_are_those_of_an_undisturbed_run_lack_nothing() -> None:
    assert set(compare_rows(MASKS, labelled(**MASKS), []).values()) == {0}


@pytest.mark.parametrize(
    ("rows", "failed", "count"),
    [
        (labelled(a=b"1", b=b"2"), [], {"lost": 1}),
        ([], [], {"lost": 3}),
        (labelled(**MASKS) + labelled(b=b"2"), [], {"doubled": 1}),
        (labelled(**MASKS), [{"image_id": "c"}], {"doubled": 1, "failed": 1}),
        (labelled(a=b"1", b=b"2"), [{"image_id": "c"}], {"failed": 1}),
        (labelled(a=b"1", b=b"x", c=b"3"), [], {"differing": 1}),
        (labelled(**MASKS, d=b"4"), [], {"differing": 1}),
    ],
)
def test_rows_that_are_lost_doubled_failed_or_other_ones_are_counted(
    rows: list[dict[str, Any]], failed: list[dict[str, Any]], count: dict[str, int]
) -> None:
    found: dict[str, Any] = compare_rows(MASKS, rows, failed)
    assert found == {**dict.fromkeys(found, 0), **count}
    assert not replace(SOUND, **found).sound


def test_a_trial_is_sound_only_without_any_count_and_with_a_verdict() -> None:
    assert SOUND.sound
    assert replace(SOUND, starts=4, after_s=99.0).sound
    assert not replace(SOUND, verified=False).sound
    assert set(COUNTS) <= {field.name for field in fields(Trial)}
    for name in COUNTS:
        one: dict[str, Any] = {name: 1}
        assert not replace(SOUND, **one).sound, name


def test_the_table_adds_up_the_trials_of_each_victim() -> None:
    trials = [
        SOUND,
        replace(SOUND, victim="raylet", starts=1),
        replace(SOUND, starts=3, lost=2, verified=False),
    ]
    *_, driver, raylet = as_markdown(trials).splitlines()
    assert driver == "| driver | 2 | 3 | 2 | 0 | 0 | 0 | 0 | 1 of 2 |"
    assert raylet == "| raylet | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 1 of 1 |"
