"""What a repetition leaves behind: published and measured figures side by side, as JSON and as a page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ovss_core.clip.architectures import DEMO
from ovss_core.config import ModelConfig
from ovss_core.evaluation.benchmarks import ORDER
from pipelines.evaluate.grid import GridRow
from pipelines.evaluate.joined import TITLES
from pipelines.evaluate.report import settings_line, write_json
from pipelines.pages import render
from pipelines.reproduce.data_sets import DataSet
from pipelines.reproduce.options import OTHER_TOWERS, PAPERS_TOWER, is_papers_tower
from pipelines.reproduce.plan import Evaluation, ReproduceJob
from pipelines.storage import Folder, redact

REPRODUCTION, PAGE = "reproduction.json", "index.html"
MEASURED, MISSING, NOT_RUN, WAITING = "measured", "missing", "not run", "waiting"
_WHOLE = 0.99
"""Share of a split's images that a comparison needs: copies of a split differ by single images, such as Context's."""
_TOLD = ("worker_seconds", "images", "measured", "failed", "weights_hash", "versions")


@dataclass
class Outcome:
    """An evaluation, and what has become of it.

    Attributes:
        report: Its `grid.json`; None where it has not been run.
        problem: Why it could not be run.
    """

    evaluation: Evaluation
    report: Mapping[str, Any] | None = None
    problem: str = ""

    @property
    def rows(self) -> list[GridRow]:
        """The rows that it measures."""
        return self.evaluation.job.rows()

    @property
    def left_out(self) -> list[str]:
        """What of the papers' tables it does not measure, and why."""
        return self.evaluation.job.left_out

    @property
    def status(self) -> str:
        """What has become of it, in a word."""
        if not self.evaluation.data_set.is_there:
            return MISSING
        if self.problem:
            return NOT_RUN
        return WAITING if self.report is None else MEASURED

    @property
    def doubt(self) -> str:
        """Why its figures are not held against the published ones; empty where they are."""
        model, benchmark = self.evaluation.model, self.evaluation.data_set.benchmark
        if self.evaluation.grid != "towers" and not is_papers_tower(model):
            return f"{model.name} ({_weights(model)}) is not the papers' tower, {PAPERS_TOWER} with OpenAI's weights"
        measured = self.report["measured"] if self.report else 0
        if measured < _WHOLE * benchmark.images:
            return f"{benchmark.name}: {measured:,} of the split's {benchmark.images:,} images are measured"
        return ""


def build_report(
    job: ReproduceJob, data_sets: Sequence[DataSet], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Put everything together that `reproduction.json` holds; figures and gaps in percent."""
    rows = [row for outcome in outcomes for row in _rows(outcome, job.options.tolerance)]
    model = job.segmenter.model
    left_out = [line for outcome in outcomes for line in outcome.left_out]
    if job.options.tables != "main" and not is_papers_tower(model):
        left_out.append(
            f"SFP's Table 4 ({' and '.join(OTHER_TOWERS)}): goes with the papers' own tower, {PAPERS_TOWER} with OpenAI's "
            f"weights, and not with {model.name}"
        )
    report = {
        "data": redact(job.options.data),
        "model": {"name": model.name, "pretrained": _weights(model), "precision": model.precision},
        "tables": job.options.tables,
        "tolerance": job.options.tolerance,
        "limit": job.options.limit,
        "data_sets": [_data_set(entry) for entry in data_sets],
        "evaluations": [_evaluation(outcome) for outcome in outcomes],
        "rows": rows,
        "averages": list(_averages(rows)),
        "left_out": list(dict.fromkeys(left_out)),
    }
    return {**report, "verdict": judge(report)}


def _data_set(entry: DataSet) -> dict[str, Any]:
    return {
        "name": entry.name,
        "root": redact(entry.root) if entry.root is not None else None,
        "images": entry.images,
        "split_images": entry.benchmark.images,
        "problem": entry.problem,
        "expected": entry.expected,
        "origin": entry.benchmark.origin,
    }


def _evaluation(outcome: Outcome) -> dict[str, Any]:
    evaluation = outcome.evaluation
    return {
        "name": evaluation.name,
        "benchmark": evaluation.data_set.name,
        "grid": evaluation.grid,
        "status": outcome.status,
        "problem": outcome.problem,
        "doubt": outcome.doubt if outcome.report else "",
        **{name: outcome.report[name] if outcome.report else None for name in _TOLD},
    }


def _rows(outcome: Outcome, tolerance: float) -> Iterator[dict[str, Any]]:
    """Yield the figures of each row; those of data sets that are not there as well."""
    evaluation, doubt = outcome.evaluation, outcome.doubt
    found = {(entry["table"], entry["name"]): entry for entry in (outcome.report or {}).get("rows", ())}
    for row in outcome.rows:
        entry = found.get((row.table, row.name))
        measured = None if entry is None or entry["miou"] is None else 100 * entry["miou"]
        # rounded, as published figures have one decimal: 63.4 is half a point off 63.9, and not a hair more; nor is -0.0 a gap
        gap = None if measured is None or row.published is None else round(measured - row.published, 2) + 0.0
        compared = gap is not None and not doubt
        yield {
            "table": row.table,
            "name": row.name,
            "benchmark": evaluation.data_set.name,
            "status": outcome.status,
            "published": row.published,
            "measured": measured,
            "gap": gap,
            "compared": compared,
            "exceeds": gap is not None and compared and abs(gap) > tolerance,
            "evaluation": evaluation.name,
            "worker_seconds": outcome.report["worker_seconds"] if outcome.report else None,
            "weights_hash": outcome.report["weights_hash"] if outcome.report else None,
            "settings": entry["settings"] if entry else None,
            "vocabulary": entry["vocabulary"] if entry else None,
        }


def _averages(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the mean of each row over the data sets, where it has all of them, as the papers print it."""
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["table"], row["name"]), []).append(row)
    for (table, name), members in cells.items():
        means = {
            figure: _mean([row[figure] for row in members]) for figure in ("published", "measured", "gap")
        }
        yield {"table": table, "name": name, **means}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(ORDER) if len(known) == len(ORDER) else None


def _weights(model: ModelConfig) -> str:
    """Name a model's weights: tag or file as it was given, an address without credentials."""
    if model.name == DEMO and model.pretrained == ModelConfig.pretrained:
        return "shipped weights"
    return redact(model.pretrained) if "://" in model.pretrained else model.pretrained


def judge(report: Mapping[str, Any]) -> dict[str, Any]:
    """Say in numbers and sentences how the measured figures stand to the published ones.

    Returns:
        ``exit_status`` is 1 where a compared figure is off by more than the tolerance, or an evaluation could measure
        nothing; missing data sets and what is not compared are in ``sentences`` and leave it at 0.
    """
    compared = [row for row in report["rows"] if row["compared"]]
    off = [row for row in compared if row["exceeds"]]
    evaluations = report["evaluations"]
    empty = [entry["name"] for entry in evaluations if entry["status"] == MEASURED and not entry["measured"]]
    doubts = dict.fromkeys(entry["doubt"] for entry in evaluations if entry["doubt"])
    sentences = []
    if compared:
        sentences.append(
            f"{len(compared)} figures are compared with published ones, and {len(off)} are off by more than "
            f"{report['tolerance']:g} points"
        )
    else:
        sentences.append(
            "No figure is compared with a published one, so the exit status says nothing about gaps"
        )
    sentences += [f"not compared: {doubt}" for doubt in doubts]
    sentences += [f"{name}: no image could be measured" for name in empty]
    missing = [entry["name"] for entry in report["data_sets"] if entry["root"] is None]
    if missing:
        sentences.append(f"missing data sets: {', '.join(missing)}")
    sentences += [
        f"{entry['name']} was not run: {entry['problem']}" for entry in evaluations if entry["problem"]
    ]
    waiting = sum(entry["status"] == WAITING for entry in evaluations)
    if waiting:
        sentences.append(f"{waiting} evaluations are still to be run; the same command goes on")
    return {
        "exit_status": 1 if off or empty else 0,
        "compared": len(compared),
        "exceeding": len(off),
        "sentences": sentences,
    }


def write_report(output: Folder, report: Mapping[str, Any]) -> None:
    """Write `reproduction.json` and the page."""
    write_json(output, REPRODUCTION, report)
    output.write(PAGE, draw_page(report).encode("utf-8", "replace"))


def draw_page(report: Mapping[str, Any]) -> str:
    """Draw the page: tables of systems by data sets, what is missing, seconds, settings and hashes."""
    tables: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in report["rows"]:
        tables.setdefault(row["table"], {}).setdefault(row["name"], {})[row["benchmark"]] = row
    averages = {(entry["table"], entry["name"]): entry for entry in report["averages"]}
    settings = [(row, settings_line(row)) for row in report["rows"] if row["settings"] is not None]
    return render(
        "reproduction.html",
        report=report,
        verdict=report["verdict"],
        tables=tables,
        averages=averages,
        columns=ORDER,
        titles=TITLES,
        missing=[entry for entry in report["data_sets"] if entry["root"] is None],
        settings=settings,
        file=REPRODUCTION,
    )
