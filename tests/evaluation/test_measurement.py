"""What one image gives, what a split sums to, and the oracle."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ovss_core.config import PurificationConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.variants import EncodedWave, VariantEngines
from ovss_core.evaluation.confusion import IGNORED
from ovss_core.evaluation.measurement import Measurement, doubts, measure, summarize
from ovss_core.evaluation.oracle import Oracle, restrict
from ovss_core.results import ScoredClass, Segmentation
from ovss_core.vocabulary import Vocabulary
from tests.tiny import random_picture, tiny_clip, tiny_config, tiny_text

VOCABULARY = Vocabulary.from_names(["background", "cat", "dog", "sofa"])


def _result(label_map: np.ndarray, kept: tuple[int, ...] = ()) -> Segmentation:
    scored = tuple(ScoredClass(index, VOCABULARY.names[index], 0.5) for index in range(1, 4))
    return Segmentation(
        label_map.astype(np.uint8),
        (),
        kept=tuple(entry for entry in scored if entry.index in kept),
        removed=tuple(entry for entry in scored if kept and entry.index not in kept),
    )


TRUTH = np.array([[0, 1, 1, 2], [0, 1, IGNORED, 2]], np.int32)
LABELS = np.array([[0, 1, 3, 2], [0, 1, 3, 1]])


def test_measuring_an_image_compares_pixels_and_classes() -> None:
    measured = measure(_result(LABELS, kept=(1, 3)), TRUTH, VOCABULARY, oracle=np.maximum(TRUTH, 0))

    assert measured.confusion.intersection.tolist() == [2, 2, 1, 0]
    assert measured.predicted_classes.to_dict() == {"hits": 2, "false_alarms": 1, "misses": 0}
    assert measured.purified_classes is not None
    assert measured.purified_classes.to_dict() == {"hits": 1, "false_alarms": 1, "misses": 1}
    assert measured.oracle is not None
    assert measured.oracle.mean_iou == 1.0


def test_without_purification_there_is_no_purified_vocabulary() -> None:
    measured = measure(_result(LABELS), TRUTH, VOCABULARY)

    assert measured.purified_classes is None
    assert summarize(measured, VOCABULARY)["purified_vocabulary"] is None
    assert summarize(measured, VOCABULARY)["oracle"] is None


def test_counts_survive_json_and_sum_to_the_scores_of_both_images() -> None:
    first = measure(_result(LABELS, (1,)), TRUTH, VOCABULARY, np.zeros((2, 4), np.uint8))
    second = measure(
        _result(LABELS.T, (2,)), np.full((4, 2), 1, np.int32), VOCABULARY, np.ones((4, 2), np.uint8)
    )

    total = Measurement.from_dict(json.loads(json.dumps(first.to_dict())), 4) + second

    summary = summarize(total, VOCABULARY)
    assert summary["classes"][1]["intersection"] == 2 + 3
    assert summary["classes"][1]["union"] == (3 + 3 - 2) + (8 + 3 - 3)
    ious = [row["iou"] for row in summary["classes"]]
    assert summary["miou"] == pytest.approx(sum(ious) / 4)
    assert summary["pixel_accuracy"] == pytest.approx((5 + 3) / (7 + 8))
    assert summary["oracle"]["gap"] == pytest.approx(summary["oracle"]["miou"] - summary["miou"])
    assert json.loads(json.dumps(summary)) == summary


def test_a_class_that_never_occurs_has_no_iou_and_does_not_count_in_the_mean() -> None:
    summary = summarize(
        measure(_result(np.zeros((2, 2))), np.zeros((2, 2), np.int32), VOCABULARY), VOCABULARY
    )

    assert [row["iou"] for row in summary["classes"]] == [1.0, None, None, None]
    assert summary["miou"] == 1.0
    assert summary["classes_scored"] == 1
    assert summary["predicted_classes"]["f1"] is None


LINES = ["background: sky", "cat", "dog, puppy", "grass", "sofa"]


def _encoded(purification: PurificationConfig | None = None) -> tuple[SegmentationEngine, EncodedWave]:
    engine = SegmentationEngine(tiny_config("sfp", purification), tiny_clip(), tiny_text(LINES))
    [[group]] = VariantEngines([engine]).encode([random_picture(40, 56)])
    return engine, group


@pytest.mark.parametrize("method", ["freecp", "none"])
def test_the_oracle_uses_only_present_classes_and_the_background(method: str) -> None:
    engine, image = _encoded(PurificationConfig(method=method, crop_size=16))  # type: ignore[arg-type]

    label_map = Oracle(engine).label_map(image, {2, 4})

    assert label_map.shape == (40, 56)
    assert set(np.unique(label_map)) <= {0, 2, 4}


def test_offering_every_class_gives_the_labels_without_redundancy_purification() -> None:
    engine, image = _encoded()
    purification = replace(engine.config.purification, redundancy=False)
    expected = SegmentationEngine(
        replace(engine.config, purification=purification), tiny_clip(), tiny_text(LINES)
    ).segment([random_picture(40, 56)])[0]

    label_map = Oracle(engine).label_map(image, {1, 2, 3, 4})

    assert (label_map != expected.label_map).mean() < 1e-3


def test_an_image_without_a_present_class_is_all_background() -> None:
    engine, image = _encoded()

    assert not Oracle(engine).label_map(image, set()).any()


def test_restricting_the_text_side_keeps_the_rows_of_the_classes_in_order() -> None:
    text = tiny_text(LINES)

    chosen = restrict(text, {4, 2})

    assert chosen.vocabulary.names == ["dog", "sofa"]
    assert chosen.vocabulary.phrases == ["dog", "puppy", "sofa"]
    assert np.array_equal(chosen.phrase_embeddings, text.phrase_embeddings[[2, 3, 5]])
    assert np.array_equal(chosen.description_embeddings, text.description_embeddings[[2, 4]])


def test_no_value_is_reported_as_none_and_never_as_nan() -> None:
    summary = summarize(
        measure(_result(np.zeros((2, 2))), np.full((2, 2), IGNORED, np.int32), VOCABULARY), VOCABULARY
    )

    assert summary["miou"] is None
    assert not any(isinstance(value, float) and math.isnan(value) for value in summary.values())


def _doubts(truth: np.ndarray, names: list[str]) -> list[str]:
    vocabulary = Vocabulary.from_names(names)
    measured = measure(_result(np.ones(truth.shape)), truth, vocabulary)
    return doubts(measured, vocabulary, truth.size)


def test_a_class_without_a_pixel_and_255_in_its_place_are_said() -> None:
    truth = np.array([[0, 0, 0, IGNORED]], np.int32)
    absent, ignored = _doubts(truth, ["sky", "house"])
    assert absent.startswith("1 of 2 classes have no pixel in any mask (house)")
    assert ignored.startswith("1 pixels (25.0 %) are ignored, as 255 is")
    assert ignored.endswith("(house: 1)")
    assert len(_doubts(np.zeros((1, 4), np.int32), ["sky", "house"])) == 1


def test_masks_that_hold_every_class_raise_no_doubt() -> None:
    assert _doubts(np.array([[0, 1, IGNORED]], np.int32), ["sky", "house"]) == []


def test_nothing_measured_is_said_in_words_and_has_no_miou() -> None:
    nothing = np.full((2, 2), IGNORED, np.int32)
    [sentence] = _doubts(nothing, ["sky", "house"])
    assert sentence.startswith("nothing could be measured: every pixel of every mask is ignored")
    vocabulary = Vocabulary.from_names(["sky", "house"])
    summary = summarize(measure(_result(np.ones((2, 2))), nothing, vocabulary), vocabulary)
    assert (summary["miou"], summary["pixel_accuracy"], summary["boundary_miou"]) == (None, None, None)
