"""The report's numbers: sums over the markers of a run, and what is only known of the rows that are sampled.

A million images have some thousand markers, which hold all counts. Which words come together, and which images stand
at either end, is asked of rows spread over all files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from ovss_core.errors import StorageError
from pipelines.label.reader import LabelFiles, opened_labels
from pipelines.label.table import HISTOGRAMS, STEPS, summarize_labels
from pipelines.run.manifest_files import read_complete
from pipelines.run.record import SUMMARY
from pipelines.run.sink import FAILED
from pipelines.run.state_files import DamagedFileError, read_json
from pipelines.run.summary import add_statistics, read_markers
from pipelines.storage import Folder

_READ = ("image_id", "present", *HISTOGRAMS)
_COUNTED = ("kept", "removed")
_FAILURE_FILES = 256
_EXAMPLES = 3
_NUMBERS = re.compile(r"\d[\d,.]*")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


@dataclass(frozen=True)
class Place:
    """Where a row of labels lies: its file, row group, and number there."""

    file: str
    group: int
    row: int


@dataclass
class Sample:
    """Rows spread over all files.

    Attributes:
        places: Where each lies.
        columns: What is known of each by the names of `HISTOGRAMS`; nan where it is null.
        classes: Values in the mask that each has.
        images: Rows that there are.
    """

    places: list[Place] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in HISTOGRAMS})
    classes: list[list[int]] = field(default_factory=list)
    images: int = 0

    def together(self, classes: Sequence[int]) -> Int[np.ndarray, "classes classes"]:
        """Count in how many of the rows two of some classes come together."""
        has = np.zeros((len(self.classes), len(classes)), np.int64)
        column = {index: place for place, index in enumerate(classes)}
        for row, found in enumerate(self.classes):
            for index in found:
                if index in column:
                    has[row, column[index]] = 1
        return has.T @ has


@dataclass(frozen=True)
class Figures:
    """What the page says in numbers.

    Attributes:
        counts: Images, labelled and failed ones, as the output's summary has them.
        statistics: Sums as `summarize_labels` has them.
        counted: Images that these are about.
        parts: A part that has it, by class; empty where there are no markers.
    """

    counts: Mapping[str, int]
    statistics: Mapping[str, Any]
    counted: int
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> list[dict[str, Any]]:
        """Name, images and pixels of each class that occurs, by pixels descending."""
        found = self.statistics.get("classes", {})
        entries = [{"name": name, **counts} for name, counts in found.items()]
        return sorted(entries, key=lambda entry: (-entry["pixels"], entry["name"]))

    def histogram(self, name: str) -> list[int] | None:
        """Return the images of each step of a column of `HISTOGRAMS`; None where nothing is known."""
        counts = self.statistics.get(name) or {}
        return [counts.get(str(step), 0) for step in range(STEPS)] if counts else None


def read_figures(output: Folder, labels: LabelFiles | None, rows: int) -> tuple[Figures, Sample]:
    """Read the numbers of an output.

    Args:
        labels: Its labels; None where it has none.
        rows: Read about so many rows.

    Raises:
        StorageError: The output cannot be read.
    """
    statistics: dict[str, Any] = {}
    parts: dict[str, str] = {}
    counted = 0
    try:
        for marker in read_markers(output, read_complete(output)):
            counted += marker["labelled"]
            add_statistics(statistics, marker["statistics"])
            parts |= dict.fromkeys(marker["statistics"].get("classes", {}), marker["part"])
    except DamagedFileError:  # a selection, or files without their run: the rows that are read must do
        statistics, parts, counted = {}, {}, 0
    marked = "margin" in statistics or "kept" in statistics
    sample, sums = Sample(), dict[str, Any]()
    if labels is not None:
        sample = Sample(images=len(labels))
        for file, group, table in _tables(labels, rows, () if marked else _COUNTED):
            _add(sample, labels, file, group, table)
            if not marked:
                add_statistics(sums, summarize_labels(table))
    if not marked:  # an older run's markers know the classes alone
        statistics = sums | {
            name: value for name, value in statistics.items() if name in ("pixels", "classes")
        }
        counted = counted or len(sample.places)
    return Figures(_counts(output, sample), statistics, counted, parts), sample


def read_failures(output: Folder) -> tuple[list[dict[str, Any]], bool]:
    """Group failures by stage, kind and reason, numbers and names in the reason left out of account.

    Returns:
        Groups by count descending, each with examples; and whether all failures were read.
    """
    names = [name for name in output.names(FAILED) if name.endswith(".pq")]
    spread = sorted(
        {round(place) for place in np.linspace(0, len(names) - 1, min(len(names), _FAILURE_FILES))}
    )
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for place in spread:
        try:
            table = pq.read_table(pa.BufferReader(output.read(f"{FAILED}/{names[place]}")))
        except (StorageError, OSError, pa.ArrowException):
            continue
        for row in table.to_pylist():
            reason = _NUMBERS.sub("…", _QUOTED.sub("…", row["reason"] or ""))
            group = groups.setdefault(
                (row["stage"], row["error_type"], reason),
                {"stage": row["stage"], "error_type": row["error_type"], "count": 0, "examples": []},
            )
            group["count"] += 1
            if len(group["examples"]) < _EXAMPLES:
                group["examples"].append({"image_id": row["image_id"], "reason": row["reason"]})
    return sorted(groups.values(), key=lambda group: -group["count"]), len(spread) == len(names)


def _counts(output: Folder, sample: Sample) -> dict[str, int]:
    try:
        summary = read_json(output, SUMMARY, {"failed": int})
    except DamagedFileError:
        return {"labelled": sample.images}
    named = ("images", "rows", "labelled", "written", "left_out", "failed")
    return {name.replace("_", " "): summary[name] for name in named if isinstance(summary.get(name), int)}


def _tables(labels: LabelFiles, rows: int, counted: Sequence[str]) -> Iterator[tuple[str, int, pa.Table]]:
    """Yield row groups spread over all files, until about so many rows have come."""
    groups = [(name, group) for name, counts in labels.groups.items() for group in range(len(counts))]
    size = max(1, len(labels) // max(1, len(groups)))
    wanted = min(len(groups), max(1, -(-rows // size)))
    chosen = sorted({round(place) for place in np.linspace(0, len(groups) - 1, wanted)})
    columns = [name for name in (*_READ, *counted) if name in labels.schema.names]
    for name in dict.fromkeys(groups[place][0] for place in chosen):
        with opened_labels(labels.folder, name) as file:
            for place in chosen:
                if groups[place][0] == name:
                    there = [column for column in columns if column in file.schema_arrow.names]
                    yield name, groups[place][1], file.read_row_group(groups[place][1], there)


def _add(sample: Sample, labels: LabelFiles, file: str, group: int, table: pa.Table) -> None:
    sample.places += [Place(file, group, row) for row in range(table.num_rows)]
    index = {name: place for place, name in enumerate(labels.class_names)}
    sample.classes += [
        [index[entry["name"]] for entry in present] for present in table["present"].to_pylist()
    ]
    for name, values in sample.columns.items():
        known = name in table.column_names
        found = table[name].to_pylist() if known else [None] * table.num_rows
        values += [np.nan if value is None else value for value in found]
