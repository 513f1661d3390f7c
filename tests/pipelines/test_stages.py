import io
from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from ovss_core.inference.engine import SegmentationEngine
from PIL import Image

from ovss_core.config import PurificationConfig, SegmenterConfig
from ovss_core.encoders.text_encoder import TextClassifier
from ovss_core.inference.decoding import decode_image
from ovss_core.segmentation import AmbiguityGroup, BoxDecision, PresentClass, ScoredClass, Segmentation
from ovss_core.segmenter import classify_text
from ovss_core.vocabulary import Vocabulary
from pipelines.label_rows import label_row, summarize_labels
from pipelines.masks import decode_mask
from pipelines.schema import FAILURE, LABELS, result_type
from pipelines.stages import ProposeStage, ResolveStage, SegmentStage
from tests.tiny import WORDS, random_picture, tiny_clip, tiny_config

SIZES = [(48, 64), (50, 41), (120, 48), (1, 1), (48, 64)]


@cache
def text() -> TextClassifier:
    return classify_text(tiny_clip(lively=False), config(), Vocabulary.from_names(WORDS))


def config(method: str = "freecp") -> SegmenterConfig:
    return tiny_config(purification=PurificationConfig(method=method, crop_size=16))  # type: ignore[arg-type]


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def photographs() -> list[bytes]:
    return [png(random_picture(height, width, seed)) for seed, (height, width) in enumerate(SIZES)]


def table(images: Sequence[bytes | None], **columns: object) -> pa.Table:
    ids = [f"image {n}" for n in range(len(images))]
    return pa.table({"image_id": ids, "image": pa.array(images, pa.binary()), **columns})


@pytest.mark.parametrize("method", ["freecp", "none"])
def test_one_at_a_time_a_batch_and_two_stages_give_the_engines_labels(method: str) -> None:
    images = photographs()
    settings = config(method)
    engine = SegmentationEngine.build(settings, text(), "cpu")
    expected = [engine.segment([decode_image(data, 10**6)])[0].label_map for data in images]

    whole = SegmentStage(settings, text(), "cpu")
    batch = whole(table(images))["result"].to_pylist()
    singles = [whole(table([data]))["result"].to_pylist()[0] for data in images]
    propose, resolve = ProposeStage(settings, text().to_bytes(), "cpu"), ResolveStage(settings, text(), "cpu")
    staged = resolve(propose(table(images)))["result"].to_pylist()

    for number, label_map in enumerate(expected):
        for rows in (batch, singles, staged):
            np.testing.assert_array_equal(decode_mask(rows[number]["mask"]), label_map)
            assert (rows[number]["height"], rows[number]["width"]) == SIZES[number]


def test_a_bad_image_fails_alone_and_failed_rows_pass_through() -> None:
    good, *_ = photographs()
    earlier = {"stage": "read", "error_type": "OSError", "reason": "gone"}
    rows = table(
        [b"", good, b"no image", None, None, png(np.zeros((200, 200, 3), np.uint8))],
        failure=pa.array([None, None, None, earlier, None, None], FAILURE),
        kept=list(range(6)),
    )
    settings = SegmenterConfig.from_dict({**config().to_dict(), "max_pixels": 30_000})
    found = SegmentStage(settings, text(), "cpu")(rows)

    assert found.column_names == ["image_id", "kept", "failure", "seconds", "result"]
    failures = found["failure"].to_pylist()
    assert failures[1] is None
    assert failures[3] == earlier
    assert [entry and entry["stage"] for entry in failures] == [
        "decode",
        None,
        "decode",
        "read",
        "segment",
        "decode",
    ]
    assert "max_pixels" in failures[5]["reason"]
    assert [row is None for row in found["result"].to_pylist()] == [True, False, True, True, True, True]
    assert found["result"].type == result_type(LABELS)


def test_seconds_of_all_steps_travel_with_the_first_row() -> None:
    settings = config()
    rows = ProposeStage(settings, text(), "cpu")(table(photographs()))
    assert rows.schema.field("proposal").type == pa.binary()
    rows = ResolveStage(settings, text(), "cpu")(rows)
    first, *others = rows["seconds"].to_pylist()
    assert {"decode", "encoder", "purification", "labels", "mask_encoding"} <= dict(first).keys()
    assert all(seconds >= 0 for _, seconds in first)
    assert others == [None] * (len(SIZES) - 1)


def test_a_table_without_ids_of_somebody_elses_pipeline_is_enough() -> None:
    stage = SegmentStage(config(), text(), "cpu", image_column="bytes")
    found = stage(pa.table({"bytes": photographs()[:2], "caption": ["x", "y"]}))
    assert found["caption"].to_pylist() == ["x", "y"]
    assert found["failure"].null_count == 2


def test_everything_a_segmentation_says_is_in_its_row() -> None:
    label_map = np.array([[0, 2], [2, 300]], np.uint16)
    result = Segmentation(
        label_map,
        present=(PresentClass(0, "a", 1, 0.25, 0.5), PresentClass(2, "c", 2, 0.5, 0.75)),
        kept=(ScoredClass(2, "c", 0.5),),
        removed=(ScoredClass(1, "b", 0.125),),
        groups=(AmbiguityGroup((0, 2), (BoxDecision(0, 1, 2, 2, 2), BoxDecision(0, 0, 0, 0, None))),),
    )
    [row] = pa.array([label_row(result)], result_type(LABELS)).to_pylist()
    np.testing.assert_array_equal(decode_mask(row.pop("mask")), label_map)
    assert row == {
        "height": 2,
        "width": 2,
        "present": [
            {"index": 2, "name": "c", "pixels": 2, "share": 0.5, "confidence": 0.75},
            {"index": 0, "name": "a", "pixels": 1, "share": 0.25, "confidence": 0.5},
        ],
        "kept": [{"index": 2, "name": "c", "score": 0.5}],
        "removed": [{"index": 1, "name": "b", "score": 0.125}],
        "groups": [
            {
                "classes": [0, 2],
                "boxes": [
                    {"x0": 0, "y0": 1, "x1": 2, "y1": 2, "winner": 2},
                    {"x0": 0, "y0": 0, "x1": 0, "y1": 0, "winner": None},
                ],
            }
        ],
    }
    counts = summarize_labels(pa.table({"present": [row["present"], row["present"]]}))
    assert counts == {
        "pixels": 6,
        "classes": {"c": {"images": 2, "pixels": 4}, "a": {"images": 2, "pixels": 2}},
    }
