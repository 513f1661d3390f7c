"""The course of a job over finished labels: units of rows, a marker each, whatever cannot be used set aside.

A unit is some row groups of one file of labels. What it writes has names that follow from the unit alone, and its marker
is written last; so the same command goes on where an earlier start stopped, and a unit that is done twice leaves the same
files. A row ends in what is written, in what was left out on purpose, or in ``_failures/`` with a reason.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

import pyarrow as pa
import ray

from ovss_core.errors import ImageError, OutputMismatchError, OvssError, StorageError
from pipelines.derive.options import DeriveOptions
from pipelines.faults import Failure
from pipelines.label.reader import LabelFiles, open_labels
from pipelines.preflight import require_apart
from pipelines.run.cluster import connected
from pipelines.run.events import displayed
from pipelines.run.execution import root_cause
from pipelines.run.fragments import encode_parquet
from pipelines.run.lifecycle import stopping_in_one_line
from pipelines.run.progress import ProgressReport
from pipelines.run.record import REPORT, RUN, SUMMARY, continues_run, write_run
from pipelines.run.schema import FAILURES
from pipelines.run.sink import DONE, FAILED
from pipelines.run.state_files import DamagedFileError, read_json, write_json
from pipelines.run.summary import add_statistics
from pipelines.storage import Folder

_JOBS = ("select", "export")
_COUNTS = ("rows", "written", "left_out", "failed")
_THREADS = 8
_READY = 2
Row = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """Some row groups of a file of labels.

    Attributes:
        number: Its place among the units.
        file: The file, relative to the output of labels.
        groups: Its row groups.
        rows: How many rows they have.
        first: Rows of the units before it.
    """

    number: int
    file: str
    groups: tuple[int, ...]
    rows: int
    first: int = 0

    @property
    def name(self) -> str:
        """The name of its marker."""
        return f"unit-{self.number:05d}"


@dataclass
class Outcome:
    """What became of a unit's rows.

    Attributes:
        written: Rows that the result holds.
        left_out: Rows that were not wanted.
        failures: Rows that could not be used, as rows of the table ``failures``.
        files: Bytes of every file that was written, by path.
        statistics: Numbers that add up over units.
        extra: What else the end of the job needs of the unit.
    """

    written: int = 0
    left_out: int = 0
    failures: list[Row] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def store(self, output: Folder, name: str, data: bytes) -> None:
        """Write a file and note its size."""
        output.write(name, data)
        self.files[name] = len(data)

    def each(self, rows: Iterable[Row], use: Callable[[Row], Any]) -> Iterator[tuple[Row, Any]]:
        """Call `use` with each row; what it raises against a row or its image becomes a failure."""
        for row in rows:
            try:
                yield row, use(row)
            except (StorageError, ImageError, OSError, ValueError) as error:
                failure = Failure.of("export", error)
                self.failures.append({"image_id": row["image_id"], "uri": row["uri"], **failure.to_dict()})


class Task(Protocol):
    """What a job makes of labels."""

    @property
    def groups(self) -> int | None:
        """Row groups of a unit; None for whole files."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads."""

    @property
    def folders(self) -> tuple[str, ...]:
        """What it writes into, at the top of its output; goes when the job starts anew."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, besides the labels."""

    def check(self, labels: LabelFiles) -> None:
        """Refuse what cannot work before anything is written.

        Raises:
            ConfigError: The labels lack something.
        """

    def prepare(self, labels: LabelFiles, output: Folder) -> "Task":
        """Return the task with what it must know of all labels before any unit can be done."""

    def work(self, labels: LabelFiles, unit: Unit, rows: Iterator[Row], output: Folder) -> Outcome:
        """Do one unit."""

    def finish(self, labels: LabelFiles, output: Folder, markers: Sequence[Mapping[str, Any]]) -> None:
        """Write what belongs to the whole."""


def plan_units(labels: LabelFiles, groups: int | None) -> list[Unit]:
    """Cut labels into units: whole files, or so many row groups each."""
    found: list[Unit] = []
    before = 0
    for name, counts in labels.groups.items():
        size = groups or len(counts)
        for first in range(0, len(counts), max(1, size)):
            chosen = tuple(range(first, min(first + size, len(counts))))
            rows = sum(counts[group] for group in chosen)
            found.append(Unit(len(found), name, chosen, rows, before))
            before += rows
    return found


def run_task(labels_uri: str, task: Task, options: DeriveOptions) -> dict[str, Any]:
    """Do a job over labels, and return its summary.

    Raises:
        StorageError: There are no labels, or the output cannot be written.
        ConfigError: The output lies inside the labels, or the other way round.
        OutputMismatchError: The output holds something else.
        OvssError: The job stopped, or its counts do not add up.
    """
    with displayed(options):
        return _run_task(labels_uri, task, options)


def _run_task(labels_uri: str, task: Task, options: DeriveOptions) -> dict[str, Any]:
    labels, output = open_labels(labels_uri), Folder(options.output)
    require_apart({"--labels": labels_uri}, options.output)
    _require_own(output)
    task.check(labels)
    identity = {**task.identity(), "labels": labels.folder.public_uri, "rows": _digest(labels)}
    goes_on = not options.overwrite and continues_run(output, identity)
    output.check_writable()
    with stopping_in_one_line():
        if not goes_on:
            remove_derived(output)
        write_run(output, identity, {"folders": list(task.folders)})
        units = plan_units(labels, task.groups)
        left = [unit for unit in units if _marker(output, unit) is None]
        ready = task.prepare(labels, output)
        with ProgressReport(len(labels)) as progress:
            progress.resume(len(labels) - sum(unit.rows for unit in left), 0)
            if left:
                with connected(options.address, options.verbose):
                    for marker in _in_tasks(labels, ready, left, output):
                        progress.advance(marker["written"] + marker["left_out"], marker["failed"])
        return finish_task(labels, ready, units, output)


def _require_own(output: Folder) -> None:
    """Refuse the output of another kind of job, which starting anew would leave without its record."""
    with suppress(DamagedFileError):
        job = read_json(output, RUN, {"identity": dict})["identity"].get("job")
        if job not in _JOBS:
            raise OutputMismatchError(
                f"{output.public_uri} holds what ovss {job or 'label'} left; give another --output"
            )


def run_unit(labels: LabelFiles, task: Task, unit: Unit, output_uri: str) -> dict[str, Any]:
    """Do one unit, and return its marker, which is written when all of it is there."""
    output = Folder(output_uri)
    rows = (row for group in unit.groups for row in labels.read_group(unit.file, group, task.columns))
    outcome = task.work(labels, unit, rows, output)
    failures = f"{FAILED}/{unit.name}.pq"
    if outcome.failures:
        outcome.store(output, failures, encode_parquet(pa.Table.from_pylist(outcome.failures, FAILURES)))
    else:
        output.remove(failures)
    marker = {
        "rows": unit.rows,
        "written": outcome.written,
        "left_out": outcome.left_out,
        "failed": len(outcome.failures),
        "files": outcome.files,
        "statistics": outcome.statistics,
        "extra": outcome.extra,
    }
    if unit.rows != outcome.written + outcome.left_out + len(outcome.failures):
        raise OvssError(f"{unit.name} lost count: {unit.rows} rows became {marker}")
    write_json(output, f"{DONE}/{unit.name}.json", marker)
    return marker


def finish_task(labels: LabelFiles, task: Task, units: Sequence[Unit], output: Folder) -> dict[str, Any]:
    """Write what belongs to the whole, and the summary.

    Raises:
        OvssError: A unit is not done.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(lambda unit: _marker(output, unit), units))
    markers = [marker for marker in found if marker is not None]
    totals: Counter[str] = Counter()
    statistics: dict[str, Any] = {}
    for marker in markers:
        totals.update({name: marker[name] for name in _COUNTS})
        add_statistics(statistics, marker["statistics"])
    if len(markers) < len(units) or totals["rows"] != len(labels):
        raise OvssError(
            f"{len(units) - len(markers)} of {len(units)} units are not done; the same command goes on"
        )
    task.finish(labels, output, markers)
    summary = {**{name: totals[name] for name in _COUNTS}, "units": len(units), "statistics": statistics}
    output.write(SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return summary


def remove_derived(output: Folder) -> None:
    """Remove what an earlier job over labels wrote, and nothing else; markers go first, the record last."""
    try:
        starts = read_json(output, RUN, {"starts": list})["starts"]
    except DamagedFileError:
        return
    folders = {name for start in starts for name in start.get("folders", ())}
    for folder in (DONE, FAILED, REPORT):
        output.remove_folder(folder)
    for name in sorted(folders):
        output.remove(name)
        output.remove_folder(name)
    for name in (SUMMARY, RUN):
        output.remove(name)


def _in_tasks(
    labels: LabelFiles, task: Task, units: Sequence[Unit], output: Folder
) -> Iterator[dict[str, Any]]:
    """Do units in Ray's tasks, some more at once than there are CPUs."""
    run = ray.remote(num_cpus=1, max_retries=3)(_run_shared)
    shared = ray.put((labels, task))
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1))) + _READY
    waiting: list[Any] = []
    try:
        for unit in units:
            if len(waiting) >= at_once:
                ready, waiting = ray.wait(waiting)
                yield from ray.get(ready)
            waiting.append(run.remote(shared, unit, output.uri))
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
    except ray.exceptions.RayError as error:
        raise OvssError(f"the job stopped: {root_cause(error)}; the same command goes on") from error


def _run_shared(shared: tuple[LabelFiles, Task], unit: Unit, output_uri: str) -> dict[str, Any]:
    return run_unit(*shared, unit, output_uri)


def _marker(output: Folder, unit: Unit) -> dict[str, Any] | None:
    """Return the marker of a unit whose files are all there as they were written; None for one that is to be done."""
    with suppress(DamagedFileError):
        kinds: dict[str, Any] = {
            **dict.fromkeys(_COUNTS, int),
            "files": dict,
            "statistics": dict,
            "extra": dict,
        }
        marker = read_json(output, f"{DONE}/{unit.name}.json", kinds)
        folders = {name.rpartition("/")[0] for name in marker["files"]}
        sizes = {
            f"{folder}/{name}": size for folder in folders for name, size in output.sizes(folder).items()
        }
        if marker["rows"] == unit.rows and all(
            sizes.get(name) == size for name, size in marker["files"].items()
        ):
            return marker
    return None


def _digest(labels: LabelFiles) -> str:
    plain = json.dumps(
        [labels.version, labels.class_names, {name: list(rows) for name, rows in labels.groups.items()}]
    )
    return blake2b(plain.encode(), digest_size=16).hexdigest()


def stable_share(image_id: str, seed: int = 0) -> float:
    """Return a number in [0, 1) that follows from an image's id alone, evenly spread."""
    digest = blake2b(
        image_id.encode("utf-8", "surrogatepass"), digest_size=8, salt=seed.to_bytes(8, "big")
    ).digest()
    return int.from_bytes(digest, "big") / 2**64
