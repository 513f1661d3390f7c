import numpy as np

from ovss_core.config import ModelConfig
from pipelines.demonstration.measurement import METHODS, VOCABULARIES, as_table, measure_demo


def test_every_way_is_measured_on_the_same_pixels_and_absent_words_can_only_cost() -> None:
    cells = measure_demo(["clearclip"], count=2, model=ModelConfig(name="demo", pretrained="random"))
    assert [(cell.method, cell.vocabulary) for cell in cells] == [
        (m, v) for m in METHODS for v in VOCABULARIES
    ]
    for cell in cells:
        assert np.array_equal(cell.confusion.actual, cells[0].confusion.actual)
        assert cell.confusion.actual.sum() == cell.confusion.predicted.sum() == 2 * 336 * 336
    present, full, over = cells[:3]
    assert present.confusion.predicted[44:].sum() == full.confusion.predicted[44:].sum() == 0
    assert present.presence.false_alarms == 0
    assert (over.confusion.intersection <= full.confusion.intersection).all()
    assert (full.confusion.intersection <= present.confusion.intersection).all()
    assert as_table(cells, 2).count("\n") == 1 + len(cells)
