"""Labels whose rows have vocabularies of their own: everything downstream finds one list of classes."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ovss_core.errors import StorageError
from ovss_core.results import Confidence, PresentClass, ScoredClass, Segmentation
from ovss_core.vocabulary import Vocabulary
from pipelines.derive.corrections import compare, read_corrections
from pipelines.derive.export import Export
from pipelines.derive.formats.base import Classes, safe_name
from pipelines.derive.options import ExportOptions, SelectOptions
from pipelines.derive.selection import Selection
from pipelines.label.card import header
from pipelines.label.masks import decode_mask, encode_mask
from pipelines.label.own_words import widened
from pipelines.label.reader import LabelFiles, open_labels
from pipelines.label.report.page import write_report
from pipelines.label.table import label_table
from pipelines.label.word_use import OwnWords
from pipelines.storage import Folder
from tests.conftest import encode_image
from tests.derive.plain import run_here
from tests.label_rows import label_row

COMMON = Vocabulary.from_names(["background", "cat"])
OFFERED = [
    ["background", "cat", "zebra"],
    ["background", "cat"],
    ["background", "cat", "red hat", "apple"],
    ["background", "cat", "apple", "unseen"],
]
ALL = ("background", "cat", "apple", "red hat", "zebra")


def named(mask: np.ndarray, names: Any, ignore: int) -> np.ndarray:
    """Return what each pixel is called, in place of its value."""
    table = np.array([*names, "-"], object)
    return table[np.where(mask == ignore, len(names), mask)]


def write(folder: Path, most: int) -> tuple[dict[str, np.ndarray], int]:
    """Write an output of four rows in two files; returns what each pixel is called, and the value without a label."""
    own = OwnWords("besides", len(COMMON), most=most)
    table = label_table(COMMON, "pixel", own_words=own)
    rows, names = [], {}
    for number, offered in enumerate(OFFERED):
        chance = np.random.default_rng(number)
        mask = chance.integers(0, len(offered), (24, 32)).astype(np.uint8)
        mask[mask == 3 if "unseen" in offered else mask > 9] = 0
        mask[:2] = 255
        present = tuple(
            PresentClass(int(index), offered[index], int((mask == index).sum()), 0.25, 0.5)
            for index in np.unique(mask)
            if index != 255
        )
        last = len(offered) - 1
        result = Segmentation(
            mask,
            present,
            kept=(ScoredClass(last, offered[last], 0.5),),
            confidence=Confidence(
                0.5, 0.5, 0.5, 1 / 12, chance.integers(0, 256, mask.shape).astype(np.uint8)
            ),
        )
        image = folder.parent / f"{number}.png"
        image.write_bytes(encode_image(number, 24, 32, "PNG"))
        row = {"image_id": image.name, "uri": str(image)} | label_row(result)
        row |= {"vocabulary": offered, "mask": encode_mask(widened(mask, own.ignore_index))}
        rows.append(row)
        names[image.name] = named(mask, offered, 255)
    (folder / "labels").mkdir(parents=True)
    for number in (0, 1):
        part = pa.Table.from_pylist(rows[2 * number : 2 * number + 2], schema=table.schema)
        pq.write_table(part, folder / f"labels/labels-{number:05d}.parquet", row_group_size=1)
    return names, own.ignore_index


def assert_names(labels: LabelFiles, expected: dict[str, np.ndarray]) -> None:
    rows = list(labels.rows())
    assert {row["image_id"] for row in rows} == set(expected)
    for row in rows:
        mask = decode_mask(row["mask"])
        assert np.array_equal(named(mask, labels.class_names, labels.ignore_index), expected[row["image_id"]])
        for entry in row["present"]:
            assert labels.class_names[entry["index"]] == entry["name"]


@pytest.mark.parametrize("most", [10, 300])
def test_rows_are_read_with_one_list_of_classes_and_the_files_stay_as_they_are(
    tmp_path: Path, most: int
) -> None:
    expected, ignore = write(tmp_path / "out", most)
    labels = open_labels(str(tmp_path / "out"))
    assert labels.class_names == ALL
    assert_names(labels, expected)
    assert_names(pickle.loads(pickle.dumps(labels)), expected)
    kept = [entry for row in labels.rows(["kept"]) for entry in row["kept"]]
    assert [(entry["index"], entry["name"]) for entry in kept] == [
        (4, "zebra"),
        (1, "cat"),
        (2, "apple"),
        (None, "unseen"),
    ]
    for row in labels.arrow.to_table().to_pylist():
        mask = decode_mask(row["mask"])
        assert np.array_equal(named(mask, row["vocabulary"], ignore), expected[row["image_id"]])
    samples = labels.torch(("image_id", "mask"))
    for sample in (samples[number] for number in range(len(samples))):
        mask = sample["mask"].numpy()
        assert np.array_equal(named(mask, ALL, labels.ignore_index), expected[sample["image_id"]])
    card = header(labels.schema, COMMON)
    assert card["ignore_index"] == ignore
    assert "class_names" not in card


def test_a_word_that_came_after_the_labels_were_opened_is_an_error_and_no_other_class(tmp_path: Path) -> None:
    write(tmp_path / "out", 10)
    labels = open_labels(str(tmp_path / "out"), ["background", "cat", "apple"])
    with pytest.raises(StorageError, match="has a word 'zebra' that it had not when it was opened"):
        list(labels.rows(["mask"]))


def test_a_selection_is_an_output_with_one_list_of_classes(tmp_path: Path) -> None:
    expected, _ = write(tmp_path / "out", 10)
    summary = run_here(
        tmp_path / "out", Selection(SelectOptions(words=("zebra", "apple"))), tmp_path / "selected"
    )
    assert (summary["written"], summary["left_out"]) == (3, 1)
    selected = open_labels(str(tmp_path / "selected"))
    assert "vocabulary" not in selected.schema.names
    assert selected.class_names == ALL
    assert_names(selected, {name: expected[name] for name in ("0.png", "2.png", "3.png")})
    run_here(tmp_path / "out", Selection(SelectOptions(best_share=0.5)), tmp_path / "best")
    for row in open_labels(str(tmp_path / "best")).rows():
        names = named(decode_mask(row["mask"]), ALL, 255)
        assert ((names == "-") | (names == expected[row["image_id"]])).all()
        assert (names != "-").mean() > 0.3


def test_exports_and_corrections_agree_on_the_classes(tmp_path: Path) -> None:
    expected, _ = write(tmp_path / "out", 10)
    run_here(tmp_path / "out", Export(ExportOptions("mmseg")), tmp_path / "mmseg")
    facts = json.loads((tmp_path / "mmseg/metainfo.json").read_text())
    assert facts["classes"] == list(ALL)
    for name, names in expected.items():
        mask = np.asarray(Image.open(tmp_path / f"mmseg/ann_dir/train/{safe_name(name)}.png"))
        assert np.array_equal(named(mask, ALL, facts["ignore_index"]), names)
    run_here(tmp_path / "out", Export(ExportOptions("cvat")), tmp_path / "cvat")
    labels = open_labels(str(tmp_path / "out"))
    classes = Classes(labels.class_names, labels.ignore_index)
    for place in ("mmseg/ann_dir/train", "cvat/annotations"):
        report = compare(labels, read_corrections(Folder(str(tmp_path / place)), classes))
        assert (report["images"], report["changed"]) == (4, 0)
        assert set(report["classes"]) >= set(ALL)


def test_the_report_counts_and_shows_words_of_rows(tmp_path: Path) -> None:
    write(tmp_path / "out", 10)
    done = write_report(Folder(str(tmp_path / "out")), images=4)
    assert done["read"] == 4
    assert done["pictures"] > 4
    page = (tmp_path / "out/_report/index.html").read_text()
    assert all(name in page for name in ALL)
