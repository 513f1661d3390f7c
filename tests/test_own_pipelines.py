"""The labelling stages in pipelines of other engines; what needs Daft or Spark is passed over where they are not installed."""

import pickle
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import pipelines.label
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig, WindowConfig
from ovss_core.errors import ConfigError
from ovss_core.vocabulary import Vocabulary
from pipelines.label import (
    FinishStage,
    ProposalOutline,
    ProposeStage,
    SegmentStage,
    StageRecipe,
    encode_vocabulary,
    set_aside,
)
from pipelines.run.schema import FAILURE, LABELS, SECONDS, result_type
from tests.conftest import encode_image

WORDS = "background,tree,house"
CONFIG = SegmenterConfig(
    model=ModelConfig("demo", "random"),
    windows=WindowConfig(size=32, stride=32, short_side=32),
    purification=PurificationConfig(method="freecp", crop_size=16),
)


@cache
def text() -> bytes:
    return encode_vocabulary(CONFIG, Vocabulary.load(WORDS))


def recipe(stage: Any, **changes: Any) -> StageRecipe:
    return StageRecipe(stage, CONFIG, text(), **changes)


def pictures() -> pa.RecordBatch:
    images = [encode_image(0), b"no image", encode_image(1, 40, 30), None, encode_image(2)]
    return pa.record_batch({"name": list("abcde"), "image": pa.array(images, pa.binary())})


@cache
def expected() -> list[Any]:
    """What one stage over the whole table gives, without the seconds, which differ from time to time."""
    return outcomes(recipe(SegmentStage).build()(pictures()).to_pylist())


def outcomes(rows: list[dict[str, Any]]) -> list[Any]:
    return [(row["name"], row["failure"] and row["failure"]["error_type"], row["result"]) for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    for name, image in zip(pictures()["name"].to_pylist(), pictures()["image"].to_pylist(), strict=True):
        if image:
            (place / f"{name}.jpg").write_bytes(image)
    return place


def test_what_own_pipelines_use_is_imported_from_the_package() -> None:
    assert all(getattr(pipelines.label, name).__doc__ for name in pipelines.label.__all__)
    with pytest.raises(AttributeError, match="'LabelStage'"):
        pipelines.label.LabelStage  # noqa: B018


def test_a_recipe_that_was_sent_labels_batches_cut_to_its_rows_as_the_stage_does() -> None:
    sent: StageRecipe = pickle.loads(pickle.dumps(recipe(SegmentStage, rows=2)))
    found = list(sent(iter([pictures(), pictures().slice(0, 0), pictures().slice(0, 1)])))
    assert all(isinstance(batch, pa.RecordBatch) for batch in found)
    assert [len(batch) for batch in found] == [2, 2, 1, 1]
    [*rows, again] = outcomes([row for batch in found for row in batch.to_pylist()])
    assert [row[:2] for row in rows] == [row[:2] for row in expected()]
    assert [row[2] and row[2]["mask"] for row in rows] == [row[2] and row[2]["mask"] for row in expected()]
    assert again[0] == "a"
    assert sent.build() is recipe(SegmentStage, rows=7).build()  # one a process


def test_batches_of_pandas_are_given_back_as_such() -> None:
    given = [pictures().to_pandas().set_index(pd.Index([5, 4, 3, 2, 1]))]
    proposed = list(recipe(ProposeStage, rows=2)(given))
    assert [list(frame.index) for frame in proposed] == [[5, 4], [3, 2], [1]]
    finished = pd.concat(recipe(FinishStage)(proposed))
    assert [row and row["mask"] for row in finished["result"]] == [
        row[2] and row[2]["mask"] for row in expected()
    ]


@pytest.mark.parametrize("stages", [[SegmentStage], [ProposeStage, FinishStage]])
def test_the_columns_after_a_stage_are_known_before_it_is_built(stages: list[Any]) -> None:
    batch, schema = pictures(), pictures().schema
    for stage in stages:
        [batch] = recipe(stage)([batch])
        schema = recipe(stage).output_schema(schema)
        assert batch.schema.equals(schema)
    assert schema.names == ["name", "failure", "seconds", "result"]
    assert schema.types[1:] == [FAILURE, SECONDS, result_type(LABELS)]


def test_a_table_without_images_has_no_columns_after_a_stage() -> None:
    with pytest.raises(ConfigError, match="no column 'photo'"):
        recipe(SegmentStage, options={"image_column": "photo"}).output_schema(pictures().schema)


@pytest.mark.parametrize("form", ["arrow", "numpy", "pandas"])
def test_a_stage_of_ones_own_between_the_two_sets_rows_aside_and_loses_none(form: str) -> None:
    batch: Any = pa.Table.from_batches([pictures()])
    if form == "pandas":
        batch = batch.to_pandas()
    elif form == "numpy":
        batch = {name: np.array(batch[name].to_pylist(), object) for name in batch.column_names}
    seen: list[ProposalOutline] = []

    def odd(outline: ProposalOutline) -> str | None:
        seen.append(outline)
        return "it is upright" if outline.height > outline.width else None

    proposed = recipe(ProposeStage).build()(batch)
    left = set_aside(proposed, odd, stage="mine")
    assert type(left) is type(proposed)
    finished = recipe(FinishStage).build()(left)
    failures = list(finished["failure"].to_pylist() if form == "arrow" else finished["failure"])
    results = list(finished["result"].to_pylist() if form == "arrow" else finished["result"])
    assert [failure and (failure["stage"], failure["error_type"]) for failure in failures] == [
        None,
        ("decode", "ImageError"),
        ("mine", "SetAside"),
        ("propose", "ImageError"),
        None,
    ]
    assert failures[2]["reason"] == "it is upright"
    masks = [result and result["mask"] for result in results]
    assert masks == [row[2]["mask"] if place in (0, 4) else None for place, row in enumerate(expected())]
    assert [(outline.height, outline.width) for outline in seen] == [(24, 32), (40, 30), (24, 32)]


def test_an_outline_says_what_the_finished_row_will_say() -> None:
    [proposed] = recipe(ProposeStage)([pictures()])
    row, label = proposed.to_pylist()[0], expected()[0][2]
    outline = ProposalOutline.of(row["proposal"])
    assert [entry["index"] for entry in label["kept"]] == list(outline.kept)
    np.testing.assert_allclose(
        [entry["score"] for entry in label["kept"] if entry["score"] is not None],
        [outline.scores[place] for place in outline.kept if not np.isnan(outline.scores[place])],
        rtol=1e-6,
    )
    assert outline.facts["threshold"] == pytest.approx(label["threshold"])


def test_a_record_batch_whose_rows_are_set_aside_stays_one_with_its_columns_in_their_places() -> None:
    [proposed] = recipe(ProposeStage)([pictures()])
    for batch in (proposed, proposed.slice(0, 0)):
        left = set_aside(batch, lambda outline: "all", stage="mine")
        assert isinstance(left, pa.RecordBatch)
        assert left.schema.equals(batch.schema)
        assert left["proposal"].null_count == len(batch)


def test_rows_are_set_aside_between_the_stages_only() -> None:
    with pytest.raises(ConfigError, match=r"no proposals .* between ProposeStage and FinishStage"):
        set_aside(pictures(), lambda outline: None, stage="mine")


def test_columns_that_another_engine_made_of_a_stages_own_are_known_again() -> None:
    [proposed] = recipe(ProposeStage)([pictures()])
    larger = pa.struct([(name, pa.large_string()) for name in ("reason", "error_type", "stage")])
    failures = pa.array(proposed["failure"].to_pylist(), larger)
    seconds = proposed["seconds"].cast(pa.map_(pa.large_string(), pa.float64()))
    kind = pa.struct([(field.name, pa.large_binary()) for field in proposed.schema.field("proposal").type])
    foreign = pa.table(
        {
            "name": proposed["name"],
            "failure": failures,
            "seconds": seconds,
            "proposal": pa.array(proposed["proposal"].to_pylist(), kind),
        }
    )
    finished = recipe(FinishStage).build()(foreign)
    assert finished.column_names == ["name", "failure", "seconds", "result"]
    assert outcomes(finished.to_pylist()) == expected()
    assert {"decode", "finish"} <= dict(finished["seconds"][0].as_py()).keys()


@pytest.fixture(scope="module")
def spark() -> Any:
    sql = pytest.importorskip("pyspark.sql", reason="Spark is not installed")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = (
            sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
        )
        yield session
        session.stop()


@pytest.mark.slow
@pytest.mark.parametrize("two_stages", [False, True])
def test_spark_labels_a_folder_in_one_stage_or_two(
    spark: Any, folder: Path, tmp_path: Path, two_stages: bool
) -> None:
    from examples import own_spark

    frame = own_spark.main(
        str(folder), WORDS, str(tmp_path / "labels"), "demo", two_stages=two_stages, spark=spark
    )
    rows = {Path(row.path).stem: row for row in frame.collect()}
    assert rows.keys() == {"a", "b", "c", "e"}
    assert rows["b"].failure.error_type == "ImageError"
    assert all(len(rows[name].words) and bytes(rows[name].mask)[1:4] == b"PNG" for name in "ace")


@pytest.mark.slow
def test_spark_gives_the_masks_of_one_process_in_arrow_and_in_pandas_and_rows_may_be_set_aside(
    spark: Any,
) -> None:
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

    rows = [(row["name"], row["image"]) for row in pictures().to_pylist()]
    frame = spark.createDataFrame(rows, "name string, image binary")
    propose, finish = recipe(ProposeStage), recipe(FinishStage)
    middle = propose.output_schema(to_arrow_schema(frame.schema))
    proposed, last = from_arrow_schema(middle), from_arrow_schema(finish.output_schema(middle))
    for call in ("mapInArrow", "mapInPandas"):
        staged = getattr(getattr(frame, call)(propose, proposed), call)
        found = [row.asDict(recursive=True) for row in staged(finish, last).collect()]
        assert [row["result"] and bytes(row["result"]["mask"]) for row in found] == [
            row[2] and row[2]["mask"] for row in expected()
        ]
        assert [row["failure"] and row["failure"]["error_type"] for row in found] == [
            row[1] for row in expected()
        ]

    def upright(batches: Any) -> Any:
        reason = lambda outline: "upright" if outline.height > outline.width else None  # noqa: E731
        yield from (set_aside(batch, reason, "mine") for batch in batches)

    chosen = frame.mapInArrow(propose, proposed).mapInArrow(upright, proposed).mapInArrow(finish, last)
    failures = [row.failure and row.failure.error_type for row in chosen.collect()]
    assert failures == [None, "ImageError", "SetAside", "ImageError", None]


@pytest.mark.slow
def test_daft_labels_a_folder(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("daft", reason="Daft is not installed")
    from examples import own_daft

    frame = own_daft.main(str(folder), WORDS, str(tmp_path / "labels"), "demo")
    rows = {Path(row["path"]).stem: row for row in frame.to_pylist()}
    assert rows.keys() == {"a", "b", "c", "e"}
    assert rows["b"]["failure"]["error_type"] == "ImageError"
    assert rows["b"]["mask"] is None
    assert all(rows[name]["words"] and rows[name]["mask"][1:4] == b"PNG" for name in "ace")
