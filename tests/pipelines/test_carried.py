"""Columns of a source beside the labels, whatever they lie in."""

import io
import json
import tarfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovss_core.errors import ConfigError
from ovss_core.vocabulary import Vocabulary
from pipelines.label.job import carried_columns
from pipelines.label.reader import open_labels
from pipelines.label.table import label_table
from pipelines.run.runner import Job
from pipelines.run.schema import LABELS
from pipelines.sources import FolderSource, ListSource, ParquetSource, WebDatasetSource
from pipelines.sources.carried import FIELDS, TEXT, parse_columns
from pipelines.sources.tar_stream import ImageFields, TarImage, stream_tar
from tests.pipelines.faulty_storage import use_faulty_storage
from tests.pipelines.plain_execution import run_plain
from tests.pipelines.test_crash_points import Clock, Killed
from tests.pipelines.test_dataset_card import VOCABULARY, label_job, label_result
from tests.pipelines.test_shards import images

IMAGES = images(5)
BESIDE = {
    name: {"caption": f"Größe {n}", "width": 100 + n, "score": n / 2, "nested": {"a": [n]}}
    for n, name in enumerate(IMAGES)
}
CARRY = "caption,width:int,score:float,nested,gone:int"


def sample(name: str) -> dict[str, bytes]:
    """The files of one image: its caption and fields before and behind it, in turn."""
    stem, number = name.partition(".")[0], list(IMAGES).index(name)
    beside = {f"{stem}.json": json.dumps(BESIDE[name]).encode(), f"{stem}.txt": f" {number} \n".encode()}
    return {**beside, name: IMAGES[name]} if number % 2 else {name: IMAGES[name], **beside}


def write_tar(path: Path, mode: Any) -> None:
    with tarfile.open(path, mode) as tar:
        for name in IMAGES:
            for member, data in sample(name).items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def make_job(kind: str, folder: Path, output: Path, carry: str) -> Job:
    folder.mkdir(exist_ok=True)
    job = label_job(folder, output, "image", False)
    source: Any
    if kind in ("parquet", "addresses"):
        for name, data in IMAGES.items():
            (folder / name).write_bytes(data)
        cells = list(IMAGES) if kind == "addresses" else list(IMAGES.values())
        columns: dict[str, Any] = {
            "image": cells,
            "name": list(IMAGES),
            "nested": [str(row["nested"]) for row in BESIDE.values()],
        }
        columns |= {key: [row[key] for row in BESIDE.values()] for key in ("caption", "width", "score")}
        pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=2)
        source = ParquetSource(str(folder), None, "name")
    elif kind == "folder":
        for name in IMAGES:
            for member, data in sample(name).items():
                (folder / member).write_bytes(data)
        source = FolderSource(str(folder))
    else:
        write_tar(folder / f"a.{kind}", "w:gz" if kind.endswith("gz") else "w")
        source = WebDatasetSource(str(folder))
        source.fields = replace(source.fields, beside=(TEXT, FIELDS))
    table = label_table(VOCABULARY, carried=carried_columns(source, carry))
    return replace(job, source=source, table=table)


@pytest.fixture(autouse=True)
def _labelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.pipelines.mean_color.result_type", lambda _: label_result())
    monkeypatch.setattr("pipelines.transport.local._sync", lambda descriptor: None)


def carried_rows(output: Path) -> dict[str, dict[str, Any]]:
    return {
        row["image_id"].rpartition("/")[2].partition(".")[0]: row for row in open_labels(str(output)).rows()
    }


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz"])
def test_fields_and_captions_beside_images_travel_in_the_types_that_were_asked_for(
    tmp_path: Path, kind: str
) -> None:
    run_plain(make_job(kind, tmp_path / "in", tmp_path / "out", f"{CARRY},txt,json"))
    rows = carried_rows(tmp_path / "out")
    assert len(rows) == 5
    for number, (name, beside) in enumerate(BESIDE.items()):
        row = rows[name.partition(".")[0]]
        assert (row["caption"], row["source_width"], row["score"]) == (
            beside["caption"],
            100 + number,
            row["score"],
        )
        assert row["source_score"] == number / 2
        assert json.loads(row["nested"]) == beside["nested"]
        assert (row["gone"], row["txt"], json.loads(row["json"])) == (None, str(number), beside)
    schema = open_labels(str(tmp_path / "out")).schema
    assert (schema.field("source_width").type, schema.field("source_score").type) == (
        pa.int64(),
        pa.float64(),
    )


@pytest.mark.parametrize("kind", ["parquet", "addresses"])
def test_columns_of_a_table_travel_in_their_own_types_also_where_it_names_addresses(
    tmp_path: Path, kind: str
) -> None:
    run_plain(make_job(kind, tmp_path / "in", tmp_path / "out", "caption,width,nested:string"))
    rows = carried_rows(tmp_path / "out")
    assert {name: rows[name.partition(".")[0]]["caption"] for name in IMAGES} == {
        name: row["caption"] for name, row in BESIDE.items()
    }
    assert [row["source_width"] for row in rows.values()] == [100, 101, 102, 103, 104]
    assert {row["container"] for row in rows.values()} == {"parquet" if kind == "parquet" else None}
    assert all(row["uri"].endswith("t.parquet" if kind == "parquet" else ".jpg") for row in rows.values())


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_what_travels_survives_a_kill_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for deadly in range(2, 60, 7):
        output = tmp_path / f"{deadly}"
        job = make_job(kind, tmp_path / "in", output, "caption")
        with monkeypatch.context() as patch:
            use_faulty_storage(patch, output, Clock(deadly))
            with suppress(Killed):
                run_plain(job)
        run_plain(job)
        captions = {row["caption"] for row in carried_rows(output).values()}
        assert captions == {row["caption"] for row in BESIDE.values()}


def test_a_sample_ends_where_its_key_changes_and_images_do_not_depend_on_what_is_wanted_beside_them(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "a.tar", "w")
    plain, with_fields = (
        [
            item
            for item in stream_tar((tmp_path / "a.tar").open("rb"), fields, 1 << 20)
            if isinstance(item, TarImage)
        ]
        for fields in (ImageFields(), ImageFields(beside=("json", "txt")))
    )
    assert [replace(item, beside={}) for item in with_fields] == plain
    assert [sorted(item.beside) for item in with_fields] == [["json", "txt"]] * 5
    assert [json.loads(item.beside["json"]) for item in with_fields] == list(BESIDE.values())


def test_a_shard_that_is_cut_gives_what_was_held_back(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", "w")
    whole = (tmp_path / "a.tar").read_bytes()
    for length in range(0, len(whole), 700):
        found = []
        for fields in (ImageFields(), ImageFields(beside=("json", "txt"))):
            items = list(stream_tar(io.BytesIO(whole[:length]), fields, 1 << 20))
            found.append([replace(item, beside={}) if isinstance(item, TarImage) else item for item in items])
        assert found[0] == found[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caption:text", "has no type 'text'; give one of string, int, float, bool"),
        ("caption,caption", "names 'caption' twice"),
        (" , ", "name columns, such as"),
    ],
)
def test_names_that_cannot_be_carried_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_columns(text, LABELS.names)


def test_a_column_that_the_table_lacks_and_a_source_without_columns_are_refused(tmp_path: Path) -> None:
    job = make_job("parquet", tmp_path / "in", tmp_path / "out", "caption")
    with pytest.raises(ConfigError, match="names 'colour', which is no column of the table"):
        carried_columns(job.source, "colour")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/in/000.jpg\n")
    with pytest.raises(ConfigError, match="--carry takes columns of --parquet"):
        carried_columns(ListSource(str(tmp_path / "list.txt")), "caption")
    assert label_table(Vocabulary.from_names(["cat"])).carried is None
