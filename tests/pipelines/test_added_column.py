import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ovss_core.config import PurificationConfig
from ovss_core.engine.facts import FACTS
from ovss_core.images.decode import decode_image
from pipelines.label.stages import FinishStage, ProposeStage, SegmentStage
from pipelines.run.fragments import FRAGMENTS, read_fragments, write_fragment
from pipelines.run.schema import LABELS
from pipelines.storage import Folder
from tests.pipelines.test_stages import config, engine_of, photographs, table, text

USE = """
import sys
from dataclasses import replace
import numpy as np
from ovss_core.engine import facts

# the entry that somebody adds; all else is as it was
entry = facts.Fact(
    "places", "classes that the image keeps", np.int32,
    lambda wave, encoded, purified: None if purified is None else purified.kept.used.sum(1),
)
facts.FACTS = (*facts.FACTS, entry)
facts.FACT_COLUMNS["fact_places"] = np.int32  # follows from the table when the module is read

import pyarrow as pa
import pyarrow.parquet as pq
from pipelines.label.stages import FinishStage, ProposeStage, SegmentStage
from pipelines.label.table import label_table
from pipelines.run.sink import WriteFragments
from pipelines.storage import Folder
from tests.pipelines.test_stages import config, photographs, table, text

LABEL_TABLE = label_table(text().vocabulary)
assert LABEL_TABLE.schema.field("places").type == pa.int32()
for method in ("freecp", "none"):
    settings = config(method)
    rows = table(photographs(), part=["part-00000"] * 5, uri=["x"] * 5, part_images=pa.nulls(5, pa.int64()))
    whole = SegmentStage(settings, text(), "cpu")(rows)
    staged = FinishStage(settings, text(), "cpu")(ProposeStage(settings, text(), "cpu")(rows))
    assert whole["result"].to_pylist() == staged["result"].to_pylist()
    WriteFragments(f"{sys.argv[1]}/{method}", LABEL_TABLE).write(staged)
    [name] = Folder(f"{sys.argv[1]}/{method}").names("_fragments/part-00000")
    stored = pq.read_table(f"{sys.argv[1]}/{method}/_fragments/part-00000/{name}")
    print(method, stored["places"].to_pylist() == [len(kept) if method == "freecp" else None for kept in stored["kept"]])
"""


def test_a_column_from_stage_1_is_one_entry_and_reaches_the_file_on_both_roads(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "freecp True\nnone True\n"


def test_every_fact_is_a_documented_column_that_may_be_null() -> None:
    for fact in FACTS:
        column = LABELS.field(fact.name)
        assert column.nullable
        assert column.metadata[b"description"].decode() == fact.meaning


def test_the_threshold_is_what_kept_scores_exceed_on_both_roads() -> None:
    rows = table(photographs())
    for settings in (config(), config("none")):
        whole = SegmentStage(settings, text(), "cpu")(rows)["result"].to_pylist()
        propose, finish = ProposeStage(settings, text(), "cpu"), FinishStage(settings, text(), "cpu")
        staged = finish(propose(rows))["result"].to_pylist()
        assert [row["threshold"] for row in staged] == [row["threshold"] for row in whole]
        for row in whole:
            scores = [entry["score"] for entry in row["removed"]]
            if settings.purification.active:
                assert all(score <= row["threshold"] for score in scores)
                # an image keeps one class although no score is high enough
                assert len(row["kept"]) == 1 or all(
                    entry["score"] > row["threshold"]
                    for entry in row["kept"]
                    if entry["score"] == entry["score"]
                )
            else:
                assert row["threshold"] is None


def test_several_hosts_disagree_on_the_same_share_on_both_roads() -> None:
    rows = table(photographs())
    for settings in (replace(config(), host="sfp,naclip"), replace(config("none"), host="sfp,naclip")):
        whole = SegmentStage(settings, text(), "cpu")(rows)["result"].to_pylist()
        propose, finish = ProposeStage(settings, text(), "cpu"), FinishStage(settings, text(), "cpu")
        staged = finish(propose(rows))["result"].to_pylist()
        assert [row["disagreement"] for row in staged] == [row["disagreement"] for row in whole]
        assert all(0 <= row["disagreement"] <= 1 for row in whole)
        assert [row["mask"] for row in staged] == [row["mask"] for row in whole]
    [first, *_] = SegmentStage(config(), text(), "cpu")(rows)["result"].to_pylist()
    assert first["disagreement"] is None


def test_a_threshold_that_is_set_is_the_images_own() -> None:
    picture = decode_image(photographs()[0], 10**6)
    for variant in ("image", "released"):
        settings = PurificationConfig(
            variant=variant, thresholds="fixed", redundancy_threshold=0.1, crop_size=16
        )
        own = replace(config(), purification=settings)
        engine = engine_of(own)
        [found] = engine.segment([picture])
        assert found.facts["threshold"] == np.float32(0.1)


def test_rows_that_were_stored_before_a_column_came_go_on_with_nulls(tmp_path: Path) -> None:
    rows = table(photographs(), part=["p"] * 5, uri=["x"] * 5)
    result = SegmentStage(config(), text(), "cpu")(rows)
    names = [name for name in LABELS.names if name != "threshold"]
    older = pa.schema([LABELS.field(name) for name in names], LABELS.metadata)
    nothing = dict.fromkeys(names)
    values = [
        nothing | {"image_id": image_id, "uri": "x", **row}
        for image_id, row in zip(rows["image_id"].to_pylist(), result["result"].to_pylist(), strict=True)
    ]
    output = Folder(str(tmp_path))
    write_fragment(output, "part-00000", {"labels": pa.Table.from_pylist(values, older)}, {})
    [(_, read, _)] = read_fragments(output, "part-00000", {"labels": LABELS})
    assert read.schema.names == LABELS.names
    assert read["threshold"].null_count == 5
    assert read.select(names).to_pylist() == [{name: row[name] for name in names} for row in values]

    # a column that every row needs is still missed
    [name] = output.names(f"{FRAGMENTS}/part-00000")
    path = tmp_path / FRAGMENTS / "part-00000" / name
    pq.write_table(pq.read_table(path).drop_columns("mask"), path)
    assert not list(read_fragments(output, "part-00000", {"labels": LABELS}))
