"""What the shipped weights can do, on scenes that neither the training nor the model card's table has seen.

Every bound holds with room on three sets of scenes; the model card has the figures for 300 scenes.
"""

import numpy as np
import pytest

from pipelines.demonstration.measurement import MeasuredCell, measure_demo
from pipelines.demonstration.scene_store import HELD_OUT_SEED
from pipelines.demonstration.words import CLASS_NAMES

SETS = (700_000, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (710_000, 720_000)))
SCENES = 10
Cells = dict[tuple[str, str], MeasuredCell]


@pytest.fixture(scope="module", params=SETS)
def cells(request: pytest.FixtureRequest) -> Cells:
    measured = measure_demo(["clearclip"], SCENES, first_seed=HELD_OUT_SEED + request.param)
    return {(cell.method, cell.vocabulary): cell for cell in measured}


def test_most_pixels_get_their_class_from_the_full_vocabulary(cells: Cells) -> None:
    confusion = cells["none", "full"].confusion
    assert confusion.intersection.sum() / confusion.actual.sum() > 0.78
    assert cells["none", "full"].mean_iou > 0.48


def test_sky_and_sea_are_found_wherever_they_are(cells: Cells) -> None:
    iou = cells["none", "full"].confusion.iou
    assert iou[CLASS_NAMES.index("sky")] > 0.87
    assert np.nanmean(iou[[CLASS_NAMES.index(name) for name in ("sea", "snow", "grass", "mountain")]]) > 0.7


def test_knowing_which_classes_are_there_helps(cells: Cells) -> None:
    assert cells["none", "present"].mean_iou > cells["none", "full"].mean_iou


def test_words_for_things_never_drawn_take_almost_no_pixels(cells: Cells) -> None:
    predicted = cells["none", "over"].confusion.predicted
    assert predicted[len(CLASS_NAMES) :].sum() < 0.01 * predicted.sum()


def test_purification_removes_more_absent_words_than_present_ones(cells: Cells) -> None:
    presence = cells["freecp", "over"].presence
    chance = (presence.hits + presence.misses) / (SCENES * 2 * len(CLASS_NAMES))
    assert presence.precision > 2.5 * chance
    assert presence.recall > 0.8


def test_purification_finds_nearly_the_labels_that_the_host_finds(cells: Cells) -> None:
    assert cells["freecp", "over"].mean_iou > cells["none", "over"].mean_iou - 0.05
