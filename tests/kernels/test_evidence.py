"""FreeCP's fused steps launch by launch against the plain forms."""

import pytest
import torch
from torch import Tensor

from ovss_core.class_purification.null import LEAST_SCORE, NullFit, null_threshold
from ovss_core.class_purification.placement import Units
from ovss_core.class_purification.refinement import EPSILON, FLATNESS
from ovss_core.class_purification.regions import threshold_levels
from tests import evidence_forms
from tests.kernels.where import MARKS, launched

pytest.importorskip("triton")
pytestmark = MARKS
COUNTS, PATCHES, PHRASES, COLUMNS = (3, 1, 2), 20, 11, 6
SIZES = [6, 3, 2]


def logits(phrases: int = PHRASES, seed: int = 0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(phrases, sum(COUNTS), PATCHES, generator=chance)


def assert_alike(ours: object, expected: object) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("likely", [False, True])
@pytest.mark.parametrize("competes", [False, True])
def test_every_launch_gives_what_its_plain_form_gives(alone: bool, likely: bool, competes: bool) -> None:
    from ovss_core.kernels import evidence_triton as kernels

    units, scores = Units.of(COUNTS), logits()
    statistics = launched(kernels.launch_statistics)(scores)
    assert_alike(statistics, evidence_forms.statistics(scores))
    log_total, low, high = statistics
    sizes = torch.tensor(SIZES, dtype=torch.int32)
    ranks = kernels.Ranks((sizes.cumsum(0) - sizes).int(), sizes)
    peaks = launched(kernels.launch_peaks)(scores, ranks, COLUMNS, log_total, alone)
    assert_alike(peaks, evidence_forms.peaks(scores, ranks, COLUMNS, log_total, alone))

    thresholds = None if alone else torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    arguments = (peaks, low, high, units.slots, 4, thresholds, 2, competes, likely)
    active = launched(kernels.launch_active)(*arguments)
    expected = evidence_forms.active(*arguments)
    assert_alike(tuple(active), tuple(expected))
    if alone:
        assert (active.counts > 4).any()  # one column at least found no place

    tables = (ranks, log_total, units.slots, units.used, active, threshold_levels(0.4, scores.device), alone)
    maps = launched(kernels.launch_maps)(scores, *tables)
    assert_alike(maps, evidence_forms.maps(scores, *tables))
    assert maps[2].any()
    assert not maps[2].all()

    moved = (maps[1] * maps[2]).cumsum(2) / PATCHES
    moved[units.index == 1, 0] = 0.25  # a flat map
    given = (moved, maps[0], units.slots, units.used, active, FLATNESS, EPSILON)
    refined, table = launched(kernels.launch_refined)(*given)
    assert_alike((refined, table), evidence_forms.refined(*given))

    if thresholds is None:
        return
    column_of = torch.tensor([3, 0, 5, 1, 2, 4], dtype=torch.int32)
    for limits in (thresholds, torch.full_like(thresholds, 0.49)):
        decisions = (active, table, column_of, limits, 3, 4, competes, likely)
        found = launched(kernels.launch_decide)(*decisions)
        assert_alike(found, evidence_forms.decide(*decisions))
        _, kept, source, counts = found
        taken = launched(kernels.launch_take)(refined, source, units.index)
        assert_alike(taken, evidence_forms.take(refined, source, units.index))
        assert taken.shape[1] == kept.shape[1] == 3
        for nulls in (None, torch.tensor([5, 1, 2], dtype=torch.int32)):
            for null_places in (4, 5):
                needs = (active.counts, nulls, counts, 4, null_places, 3)
                assert_alike(launched(kernels.launch_needs)(*needs), evidence_forms.needs(*needs))


@pytest.mark.parametrize("filled", [0.0, 0.2, 1.0])
def test_thresholds_of_distractors_equal_the_general_rule(filled: float) -> None:
    from ovss_core.kernels.evidence_triton import launch_null

    chance = torch.Generator().manual_seed(5)
    scores = 0.5 * torch.rand(3, 120, generator=chance, dtype=torch.float64)
    scores *= torch.rand(3, 120, generator=chance) < filled
    expected = null_threshold(scores, 40, 0.5, 0.05)
    fit = NullFit.of(120, 40)
    ranked = scores.sort(1, descending=True).values
    given = (
        ranked,
        fit.normal(scores.device),
        fit.first,
        fit.own,
        fit.target,
        0.5,
        0.05,
        fit.enough,
        LEAST_SCORE,
    )
    torch.testing.assert_close(launched(launch_null)(*given), expected)
    torch.testing.assert_close(evidence_forms.null(*given), expected)
