import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray

from ovss_core.api import encode_words
from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.errors import ConfigError
from ovss_core.images.decode import decode_image
from ovss_core.regions import RegionVote
from ovss_core.results import (
    AmbiguityGroup,
    BoxDecision,
    Confidence,
    PresentClass,
    ScoredClass,
    ScoredClasses,
    Segmentation,
)
from ovss_core.vocabulary import Vocabulary
from pipelines.label.masks import decode_mask, encode_mask
from pipelines.label.stages import FinishStage, ProposeStage, SegmentStage, read_ahead
from pipelines.label.table import label_column, summarize_labels
from pipelines.run.schema import FAILURE, LABELS, PROPOSAL, result_type
from tests.label_rows import label_row
from tests.tiny import WORDS, random_picture, tiny_clip, tiny_config

SIZES = [(48, 64), (50, 41), (120, 48), (1, 1), (48, 64)]


@cache
def text() -> EncodedVocabulary:
    return encode_words(tiny_clip(lively=False), config(), Vocabulary.from_names(WORDS))


def engine_of(settings: SegmenterConfig) -> SegmentationEngine:
    vocabulary = text()  # from here on open_clip knows the tiny models
    return SegmentationEngine(settings, load_clip(settings.model), vocabulary)


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
    engine = engine_of(settings)
    expected = [engine.segment([decode_image(data, 10**6)])[0].label_map for data in images]

    whole = SegmentStage(settings, text(), "cpu")
    batch = whole(table(images))["result"].to_pylist()
    singles = [whole(table([data]))["result"].to_pylist()[0] for data in images]
    propose, finish = ProposeStage(settings, text().to_bytes(), "cpu"), FinishStage(settings, text(), "cpu")
    staged = finish(propose(table(images)))["result"].to_pylist()

    for number, label_map in enumerate(expected):
        for rows in (batch, singles, staged):
            np.testing.assert_array_equal(decode_mask(rows[number]["mask"]), label_map)
            assert (rows[number]["height"], rows[number]["width"]) == SIZES[number]


@pytest.mark.parametrize("at_once", [1, 2])
def test_images_that_are_decoded_ahead_get_the_labels_of_their_own(at_once: int) -> None:
    images = photographs()
    images[2] = b"no image"
    together = SegmentStage(config(), text(), "cpu")(table(images))
    apart = SegmentStage(config(), text(), "cpu", images_at_once=at_once)(table(images))
    assert apart.drop_columns("seconds").equals(together.drop_columns("seconds"))


def test_two_portions_are_prepared_while_the_caller_has_one_and_no_more() -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(2) as threads:

        def prepare(item: int) -> int:
            begun.append(item)
            return -item

        portions = read_ahead(threads, prepare, range(9), 2)
        assert next(portions) == [0, -1]
        threads.submit(int).result()  # what was begun before has been taken up by then
        assert set(begun) <= set(range(6))
        assert len(begun) >= 5
        assert list(portions) == [[-2, -3], [-4, -5], [-6, -7], [-8]]


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
    assert rows.schema.field("proposal").type == PROPOSAL
    rows = FinishStage(settings, text(), "cpu")(rows)
    first, *others = rows["seconds"].to_pylist()
    assert {"decode", "encoder", "purification", "finish", "mask_encoding"} <= dict(first).keys()
    assert all(seconds >= 0 for _, seconds in first)
    assert others == [None] * (len(SIZES) - 1)


def test_a_table_without_ids_of_somebody_elses_pipeline_is_enough() -> None:
    stage = SegmentStage(config(), text(), "cpu", image_column="bytes")
    found = stage(pa.table({"bytes": photographs()[:2], "caption": ["x", "y"]}))
    assert found["caption"].to_pylist() == ["x", "y"]
    assert found["failure"].null_count == 2


def arrays() -> list[np.ndarray]:
    return [random_picture(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


def expected_masks() -> list[np.ndarray]:
    return masks(stage()(table(photographs()))["result"].to_pylist())


def masks(rows: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    return [decode_mask(row["mask"]) for row in rows]


@cache
def stage(kind: type = SegmentStage, image_column: str = "image") -> Any:
    return kind(config("none"), text(), "cpu", image_column=image_column)


def object_array(values: Sequence[object]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def assert_masks(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


USERS = {
    "seconds": [1.5, 2.5, 3.5, 4.5, 5.5],
    "failure": ["none", "none", "minor", "none", "none"],
    "result": [1, 2, 3, 4, 5],
    "part": ["wing", "door", "roof", "hood", "sill"],
    "proposal": [b"a", b"b", b"c", b"d", b"e"],
}


@pytest.mark.parametrize("form", ["pyarrow", "numpy", "pandas"])
def test_columns_of_the_users_own_names_are_kept_and_the_stages_stand_beside_them(form: str) -> None:
    names = ["ovss_failure", "ovss_seconds", "ovss_result"]
    for stages in ([stage()], [stage(ProposeStage), stage(FinishStage)]):
        batch: Any = table(photographs(), **USERS)
        if form == "numpy":
            batch = {name: object_array(batch[name].to_pylist()) for name in batch.column_names}
            batch["seconds"] = np.array(USERS["seconds"])
        elif form == "pandas":
            batch = batch.to_pandas().set_index(pd.Index([9, 8, 7, 6, 5]))
        for each in stages:
            batch = each(batch)
        found = batch.to_pydict() if form == "pyarrow" else {name: list(batch[name]) for name in batch}
        assert list(found) == ["image_id", *USERS, *names]
        assert {name: found[name] for name in USERS} == USERS
        assert found["ovss_failure"] == [None] * 5
        assert "decode" in dict(found["ovss_seconds"][0])
        assert_masks(masks(found["ovss_result"]), expected_masks())
        if form == "pandas":
            assert batch.index.tolist() == [9, 8, 7, 6, 5]


@pytest.mark.parametrize("form", ["numpy", "pandas"])
@pytest.mark.parametrize("method", ["freecp", "none"])
def test_numpy_and_pandas_batches_are_given_back_as_they_came(form: str, method: str) -> None:
    images = [*photographs(), b"no image", None]
    batch: Any = {"image": object_array(images), "caption": np.arange(7)}
    if form == "pandas":
        batch = pd.DataFrame(batch)
    propose, finish = (kind(config(method), text(), "cpu") for kind in (ProposeStage, FinishStage))
    proposed = propose(batch)
    assert isinstance(proposed, type(batch))
    assert proposed["proposal"][0]["maps"]
    found = finish(proposed)
    assert isinstance(found, type(batch))
    assert list(found) == ["caption", "failure", "seconds", "result"]
    assert list(found["caption"]) == list(range(7))
    assert [failure and failure["stage"] for failure in found["failure"]] == [None] * 5 + [
        "decode",
        "propose",
    ]
    assert {"decode", "finish"} <= found["seconds"][0].keys()
    whole = SegmentStage(config(method), text(), "cpu")(table(photographs()))
    assert_masks(masks(list(found["result"])[:5]), masks(whole["result"].to_pylist()))


def image_columns() -> dict[str, Any]:
    files, pixels = photographs(), arrays()
    lists = pa.array([list(data) for data in files], pa.list_(pa.uint8()))
    structs = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(files)]
    return {
        "binary": pa.array(files, pa.binary()),
        "large binary": pa.array(files, pa.large_binary()),
        "binary view": pa.array(files, pa.binary_view()),
        "dictionary": pa.array(files, pa.binary()).dictionary_encode(),
        "structs": pa.array(structs, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "lists of bytes": lists,
        "large lists of bytes": lists.cast(pa.large_list(pa.uint8())),
        "lists of pixels": pa.array(
            [array.tolist() for array in pixels], pa.list_(pa.list_(pa.list_(pa.uint8())))
        ),
        "Ray's tensors of any shape": ArrowVariableShapedTensorArray.from_numpy(object_array(pixels)),
        "objects of bytes": object_array(files),
        "memoryviews": object_array([memoryview(data) for data in files]),
        "byte arrays": object_array([bytearray(data) for data in files]),
        "arrays of bytes": object_array([np.frombuffer(data, np.uint8) for data in files]),
        "arrays of pixels": object_array(pixels),
        "dictionaries": object_array(structs),
        "PIL images": object_array([Image.fromarray(array) for array in pixels]),
    }


@pytest.mark.parametrize("dress", image_columns())
def test_images_are_taken_in_whatever_dress_they_come(dress: str) -> None:
    column = image_columns()[dress]
    batches: list[Any] = [
        pa.table({"picture": column}) if not isinstance(column, np.ndarray) else {"picture": column}
    ]
    if isinstance(column, np.ndarray):
        batches.append(pd.DataFrame({"picture": column}))
    for batch in batches:
        found = stage(image_column="picture")(batch)
        rows = found["result"].to_pylist() if isinstance(found, pa.Table) else list(found["result"])
        assert_masks(masks(rows), expected_masks())


def test_tensors_of_one_shape_are_taken_from_arrow_ray_and_numpy() -> None:
    pictures = np.stack([random_picture(48, 64, seed) for seed in range(3)])
    expected = masks(stage()(table([png(picture) for picture in pictures]))["result"].to_pylist())
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(pictures)
    for column in (tensor, ArrowTensorArray.from_numpy(pictures)):
        assert_masks(masks(stage()(pa.table({"image": column}))["result"].to_pylist()), expected)
    assert_masks(masks(list(stage()({"image": pictures})["result"])), expected)


def test_gray_and_transparent_pixels_are_taken_as_their_files_are() -> None:
    clear = np.dstack([random_picture(48, 64), np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)])
    gray = random_picture(48, 64)[..., 0]
    found = stage()({"image": object_array([clear, gray, gray[..., None]])})
    expected = masks(stage()(table([png(clear), png(gray), png(gray)]))["result"].to_pylist())
    assert_masks(masks(list(found["result"])), expected)


def test_pixels_that_are_no_picture_and_odd_values_fail_alone() -> None:
    odd = [
        photographs()[0],
        np.zeros((4, 5, 2), np.uint8),
        "a path",
        np.zeros((300, 300, 3), np.uint8),
        float("nan"),
    ]
    settings = SegmenterConfig.from_dict({**config("none").to_dict(), "max_pixels": 30_000})
    found = SegmentStage(settings, text(), "cpu")({"image": object_array(odd)})
    reasons = [failure and failure["reason"] for failure in found["failure"]]
    assert reasons[0] is None
    assert "shape (4, 5, 2) are no picture" in reasons[1]
    assert "a value of type str is no image" in reasons[2]
    assert "max_pixels (30,000)" in reasons[3]
    assert reasons[4] == "column 'image' is empty"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pa.table({"img": [b"x"], "label": [1]}), "no column 'image'.*it has img, label.*image_column"),
        (
            pa.table({"image": ["s3://bucket/a.jpg"]}),
            "'image' holds string, not image files.*addresses.*read_binary",
        ),
        (pa.table({"image": [1, 2]}), "'image' holds int64, not image files as bytes"),
        (pa.table({"image": [[0.5]]}), "'image' holds list<.*double>, not image files"),
        (pa.table({"image": [{"path": "a.jpg"}]}), "'image' holds struct<path: string>, not image files"),
        (pa.table([[b"x"], [b"y"]], names=["image", "image"]), "2 columns 'image'"),
        ({"image": np.zeros((2, 4, 4, 3), np.float32)}, "'image' holds arrays of float32, not image files"),
        ({"image": object_array(["a.jpg", None])}, "'image' holds str, not image files.*addresses"),
        ({"image": np.array([1, 2])}, "'image' holds int64"),
        ({"other": np.array([1, 2])}, "no column 'image'.*it has other"),
        (pd.DataFrame({"image": ["a.jpg"]}), "'image' holds str"),
        ({"image": b"one row", "label": 3}, "a stage got a dict that is no batch; call it by map_batches"),
        ([{"image": b"x"}], "a stage got a list that is no batch"),
    ],
)
def test_what_cannot_be_taken_is_refused_at_the_first_batch(batch: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stage()(batch)


def test_tensors_of_other_numbers_are_refused() -> None:
    column = ArrowTensorArray.from_numpy(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ConfigError, match="'image' holds tensors of float32, not image files"):
        stage()(pa.table({"image": column}))


def test_the_second_stage_says_that_it_wants_the_first() -> None:
    for batch in (table(photographs()), pa.table({"proposal": ["text"]})):
        with pytest.raises(ConfigError, match=r"no column 'proposal' of proposals.*what ProposeStage gives"):
            stage(FinishStage)(batch)


@pytest.mark.parametrize(
    "empty",
    [
        table([]),
        pa.table({}),
        {"image": np.array([], object)},
        {},
        pd.DataFrame({"image": []}),
        pd.DataFrame(),
    ],
)
def test_an_empty_batch_stays_one(empty: Any) -> None:
    for kind in (SegmentStage, ProposeStage):
        found = stage(kind)(empty)
        assert isinstance(found, type(empty))
        names = found.column_names if isinstance(found, pa.Table) else list(found)
        assert names[-3:] == ["failure", "seconds", kind.output]
        assert all(len(found[name]) == 0 for name in names)


@pytest.mark.parametrize("kinds", [(SegmentStage,), (ProposeStage, FinishStage)])
def test_an_image_whose_features_are_not_finite_fails_alone(
    kinds: tuple[type, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    white = png(np.full((48, 64, 3), 255, np.uint8))
    first, *_ = stages = [kind(config(), text(), "cpu") for kind in kinds]
    batch = table([photographs()[0], white, photographs()[1]])
    trace = first.engine.encoder.trace

    def poisoned(windows: torch.Tensor, request: TraceRequest) -> EncoderTrace:
        found: EncoderTrace = trace(windows, request)
        found.tokens[windows.amin((1, 2, 3)) > 1.7] = torch.nan
        return found

    monkeypatch.setattr(first.engine.encoder, "trace", poisoned)
    for each in stages:
        batch = each(batch)
    failures, rows = batch["failure"].to_pylist(), batch["result"].to_pylist()
    assert [failure is None for failure in failures] == [True, False, True]
    assert failures[1]["stage"] == first.name
    assert "features of its windows are not finite" in failures[1]["reason"]
    alone = SegmentStage(config(), text(), "cpu")(table([photographs()[0], photographs()[1]]))
    assert_masks(masks([rows[0], rows[2]]), masks(alone["result"].to_pylist()))


@pytest.mark.parametrize("form", [pytest.param("pyarrow", marks=pytest.mark.slow), "numpy"])
def test_the_stages_fit_into_a_ray_pipeline_over_any_batches(ray_session: None, form: str) -> None:
    import ray

    settings = replace(config("none"), model=ModelConfig("demo", "random"))
    words = encode_words(load_clip(settings.model), settings, Vocabulary.from_names(WORDS)).to_bytes()
    images = photographs() if form == "pyarrow" else [random_picture(48, 64, seed) for seed in range(5)]
    rows = [{"image": data, "seconds": float(n), "caption": f"c{n}"} for n, data in enumerate(images)]
    labelled = ray.data.from_items(rows).map_batches(
        SegmentStage,
        fn_constructor_kwargs={"config": settings, "text": words},
        batch_format=form,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.5,
    )
    found = {row["caption"]: row for row in labelled.take_all()}
    assert sorted(found) == [f"c{n}" for n in range(5)]
    assert [found[f"c{n}"]["seconds"] for n in range(5)] == [0, 1, 2, 3, 4]
    local = SegmentStage(settings, words, "cpu")({"image": object_array(images)})
    assert_masks(masks([found[f"c{n}"]["result"] for n in range(5)]), masks(list(local["result"])))


def test_everything_a_segmentation_says_is_in_its_row() -> None:
    label_map = np.array([[0, 2], [2, 300]], np.uint16)
    result = Segmentation(
        label_map,
        present=(PresentClass(0, "a", 1, 0.25, 0.5), PresentClass(2, "c", 2, 0.5, 0.75)),
        kept=(ScoredClass(2, "c", 0.5),),
        removed=(ScoredClass(1, "b", 0.125),),
        groups=(AmbiguityGroup((0, 2), (BoxDecision(0, 1, 2, 2, 2), BoxDecision(0, 0, 0, 0, None))),),
        facts={"threshold": 0.375, "disagreement": 0.25},
        regions=(RegionVote(7, 3, 2, 0.75),),
    )
    column = label_column([result, result], [encode_mask(label_map)] * 2)
    assert column.equals(pa.array([label_row(result)] * 2, result_type(LABELS)))
    assert column.type == result_type(LABELS)
    row = column.to_pylist()[1]
    np.testing.assert_array_equal(decode_mask(row.pop("mask")), label_map)
    assert row == {
        "height": 2,
        "width": 2,
        "words": ["c", "a"],
        "vocabulary": None,
        "score": None,
        "margin": None,
        "sure": None,
        "ignored": 0.0,
        "confidence": None,
        "present": [
            {"index": 2, "name": "c", "pixels": 2, "share": 0.5, "confidence": 0.75},
            {"index": 0, "name": "a", "pixels": 1, "share": 0.25, "confidence": 0.5},
        ],
        "kept": [{"index": 2, "name": "c", "score": 0.5}],
        "removed": [{"index": 1, "name": "b", "score": 0.125}],
        "threshold": 0.375,
        "disagreement": 0.25,
        "groups": [
            {
                "classes": [0, 2],
                "boxes": [
                    {"x0": 0, "y0": 1, "x1": 2, "y1": 2, "winner": 2},
                    {"x0": 0, "y0": 0, "x1": 0, "y1": 0, "winner": None},
                ],
            }
        ],
        "regions": [{"region": 7, "pixels": 3, "winner": 2, "agreement": 0.75}],
    }
    counts = summarize_labels(pa.table({"present": [row["present"], row["present"]]}))
    assert counts == {
        "pixels": 6,
        "classes": {"c": {"images": 2, "pixels": 4}, "a": {"images": 2, "pixels": 2}},
    }


@pytest.mark.parametrize("classes", [1, 40])
def test_scored_classes_of_a_batch_are_listed_as_those_of_each_image_are(classes: int) -> None:
    names = tuple(f"class {index}" for index in range(classes))
    chance = np.random.default_rng(0)
    results = []
    for kept in (0, classes // 2, classes):
        indices = np.sort(chance.choice(classes, kept, replace=False))
        others = np.setdiff1d(np.arange(classes), indices)
        scores = np.where(chance.random(classes) < 0.1, np.nan, chance.random(classes)).astype(np.float32)
        listed = [ScoredClasses(names, which, scores[which]) for which in (indices, others)]
        label_map = np.full((2, 3), classes, np.uint8)
        sure = Confidence(0.5, 0.25, 0.125, 0.75, label_map) if kept else None
        present = (PresentClass(0, "a", 1, 0.25, 0.5), PresentClass(2, "c", 2, 0.5, 0.75))[:kept]
        results.append(Segmentation(label_map, present, listed[0], listed[1], confidence=sure))
    pictures = [encode_mask(result.label_map) for result in results]
    margins = [
        picture if result.confidence else None for result, picture in zip(results, pictures, strict=True)
    ]
    column = label_column(results, pictures, margins)
    expected = pa.array([label_row(result) for result in results], result_type(LABELS))
    assert str(column.to_pylist()) == str(expected.to_pylist())  # nan is not equal to itself
    assert label_column([], []).type == column.type
