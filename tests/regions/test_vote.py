from collections import Counter

import numpy as np
import pytest

from ovss_core.regions import RegionMap, vote
from ovss_core.regions.vote import ignored_label

RNG = np.random.default_rng(7)


@pytest.mark.parametrize(("dtype", "classes"), [(np.uint8, 6), (np.uint8, 255), (np.uint16, 3_000)])
@pytest.mark.parametrize("most", [0, 4, 200])
def test_every_region_takes_the_class_that_most_of_its_pixels_have(
    most: int, dtype: type[np.generic], classes: int
) -> None:
    labels = RNG.integers(0, classes, (40, 50)).astype(dtype)
    labels[:20] = RNG.integers(0, 2, (20, 50))
    regions = RegionMap.of_array(RNG.integers(0, most + 1, (40, 50)))
    voted, votes = vote(labels, regions)
    assert voted.dtype == dtype
    assert [entry.region for entry in votes] == sorted(set(regions.ids.reshape(-1).tolist()) - {0})
    for entry in votes:
        inside = regions.ids == entry.region
        counts = Counter(labels[inside].tolist())
        winner = min(counts, key=lambda label: (-counts[label], label))
        assert (entry.pixels, entry.winner) == (inside.sum(), winner)
        assert entry.agreement == counts[winner] / inside.sum()
        assert (voted[inside] == winner).all()
    outside = regions.ids == 0
    np.testing.assert_array_equal(voted[outside], labels[outside])


def test_of_equal_counts_the_lower_class_wins() -> None:
    labels = np.array([[3, 1, 3, 1]], np.uint8)
    voted, [entry] = vote(labels, RegionMap.of_array(np.full((1, 4), 9)))
    assert voted.tolist() == [[1, 1, 1, 1]]
    assert (entry.region, entry.winner, entry.agreement) == (9, 1, 0.5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_regions_that_do_not_agree_enough_are_ignored_and_keep_their_winner_on_record(
    dtype: type[np.generic],
) -> None:
    labels = np.array([[0, 0, 0, 1], [2, 2, 3, 4]]).astype(dtype)
    regions = RegionMap.of_array(np.array([[1, 1, 1, 1], [2, 2, 2, 0]]))
    voted, votes = vote(labels, regions, min_agreement=0.7)
    nothing = ignored_label(np.dtype(dtype))
    assert voted.tolist() == [[0, 0, 0, 0], [nothing, nothing, nothing, 4]]
    assert [(entry.winner, round(entry.agreement, 3)) for entry in votes] == [(0, 0.75), (2, 0.667)]
    assert nothing == (255 if dtype is np.uint8 else 65535)


def test_renumbering_regions_changes_no_label() -> None:
    labels = RNG.integers(0, 5, (30, 30)).astype(np.uint8)
    regions = RNG.integers(0, 12, (30, 30))
    shuffled = np.concatenate([[0], 1 + RNG.permutation(100_000)[:11]])
    first, _ = vote(labels, RegionMap.of_array(regions))
    second, _ = vote(labels, RegionMap.of_array(shuffled[regions]))
    np.testing.assert_array_equal(first, second)
