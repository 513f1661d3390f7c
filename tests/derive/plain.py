"""Jobs over labels without Ray, and outputs of labels to try them on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovss_core.results import Segmentation
from pipelines.derive import units
from pipelines.derive.options import DeriveOptions
from pipelines.derive.units import Task, Unit, run_task, run_unit
from pipelines.label.card import write_card
from pipelines.label.reader import LabelFiles, open_labels
from pipelines.label.table import label_table
from pipelines.storage import Folder
from tests.label_rows import label_row
from tests.pipelines.test_dataset_card import VOCABULARY, segmentation


def write_labels(
    folder: Path,
    results: dict[str, Segmentation],
    per_file: int = 4,
    confidence: Any = "pixel",
    addresses: dict[str, str] | None = None,
) -> LabelFiles:
    """Write an output of labels, several files with two rows a row group."""
    table = label_table(VOCABULARY, confidence)
    rows = [
        {"image_id": name, "uri": (addresses or {}).get(name, f"/in/{name}")} | label_row(result)
        for name, result in results.items()
    ]
    (folder / "labels").mkdir(parents=True)
    for number, first in enumerate(range(0, len(rows), per_file)):
        part = pa.Table.from_pylist(rows[first : first + per_file], schema=table.schema)
        pq.write_table(part, folder / f"labels/labels-{number:05d}.parquet", row_group_size=2)
    write_card(Folder(str(folder)), table.schema, VOCABULARY)
    return open_labels(str(folder))


def ten_labels(folder: Path) -> tuple[LabelFiles, dict[str, Segmentation]]:
    results = {f"{number:02d}.jpg": segmentation(number) for number in range(10)}
    return write_labels(folder, results), results


@contextmanager
def _nothing(*arguments: object) -> Iterator[bool]:
    yield False


def _in_this_process(
    labels: LabelFiles, task: Task, chosen: Sequence[Unit], output: Folder
) -> Iterator[dict[str, Any]]:
    for unit in chosen:
        yield run_unit(labels, task, unit, output.uri)


def run_here(
    labels: Path | str,
    task: Task,
    output: Path | str,
    overwrite: bool = False,
    monkeypatch: pytest.MonkeyPatch | None = None,
) -> dict[str, Any]:
    """Do a job as its command does, Ray apart."""
    patch = pytest.MonkeyPatch()
    try:
        patch.setattr(units, "connected", _nothing)
        patch.setattr(units, "_in_tasks", _in_this_process)
        return run_task(str(labels), task, DeriveOptions(str(output), overwrite))
    finally:
        patch.undo()
