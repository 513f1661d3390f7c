from pathlib import Path

import numpy as np
import pytest

from ovss_core.config import ModelConfig, PurificationConfig
from ovss_core.errors import ConfigError
from ovss_core.vocabulary import Vocabulary
from pipelines.demonstration.measurement import as_table, measure_demo, measured_vocabulary
from pipelines.demonstration.options import MEASURED_VOCABULARIES, MeasureOptions
from pipelines.demonstration.words import CLASS_NAMES, DISTRACTORS, phrases_of

RANDOM = ModelConfig(name="demo", pretrained="random")


def test_every_way_is_measured_on_the_same_pixels_and_absent_words_can_only_cost() -> None:
    options = MeasureOptions(("none", "image"), ("present", "full", "over", "ade144"))
    cells = measure_demo(["clearclip"], count=2, model=RANDOM, options=options)
    assert [(cell.method, cell.vocabulary) for cell in cells] == [
        (method, words) for method in options.methods for words in options.vocabularies
    ]
    for cell in cells:
        assert np.array_equal(cell.confusion.actual, cells[0].confusion.actual)
        assert cell.confusion.actual.sum() == cell.confusion.predicted.sum() == 2 * 336 * 336
        assert cell.scenes == 2
        assert cell.pixel_accuracy == cell.confusion.intersection.sum() / (2 * 336 * 336)
        assert cell.false_words == cell.presence.false_alarms / 2
    present, full, over, other = cells[:4]
    assert present.confusion.predicted[44] == full.confusion.predicted[44] == 0
    assert over.confusion.predicted[44] > 0
    assert present.presence.false_alarms == 0
    for more in (over, other):
        assert (more.confusion.intersection[:44] <= full.confusion.intersection[:44]).all()
    assert (full.confusion.intersection <= present.confusion.intersection).all()
    assert as_table(cells, 2).count("\n") == 1 + len(cells)


def test_thresholds_act_in_a_measurement() -> None:
    strict = PurificationConfig(thresholds="fixed", redundancy_threshold=0.4)
    [cell] = measure_demo(
        ["clearclip"], 1, RANDOM, options=MeasureOptions(("filter",), ("full",), purification=strict)
    )
    assert cell.method == "filter"
    assert cell.presence.hits + cell.presence.false_alarms <= 1


@pytest.mark.parametrize("name", MEASURED_VOCABULARIES[1:])
def test_a_measured_vocabulary_begins_with_the_drawn_words_and_adds_others(name: str) -> None:
    words = measured_vocabulary(name)
    assert tuple(words.names[:44]) == CLASS_NAMES
    assert len(words) == {"full": 44, "over": 88, "ade144": 144, "many": 1044}[name]
    read = {phrase for drawn in CLASS_NAMES for phrase in phrases_of(drawn)} | set(DISTRACTORS)
    assert bool(read & set(words.phrases[44:])) == (name == "ade144")


def test_the_longer_list_of_the_demo_is_the_one_that_is_measured() -> None:
    words = Path(__file__).parents[2] / "examples" / "ade144.txt"
    assert Vocabulary.load(words).content_hash == measured_vocabulary("ade144").content_hash


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--methods image,auto|--methods auto.*none, image"):
        MeasureOptions(methods=("image", "auto"))
    with pytest.raises(ConfigError, match="--vocabularies"):
        MeasureOptions(vocabularies=())
