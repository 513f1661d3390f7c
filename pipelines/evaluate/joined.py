"""Finished evaluations in the papers' layout: systems by data sets, and their average."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ovss_core.errors import StorageError
from ovss_core.evaluation.benchmarks import ORDER, list_systems, published_system
from pipelines.evaluate.report import EVALUATION, GRID
from pipelines.storage import Folder

Figure = Literal["miou", "boundary_miou", "pixel_accuracy"]
TableFormat = Literal["markdown", "csv", "latex"]
TITLES = {
    "voc21": "VOC21",
    "context60": "Context60",
    "coco_object": "Object",
    "voc20": "VOC20",
    "context59": "Context59",
    "coco_stuff164k": "Stuff",
    "ade20k": "ADE",
    "cityscapes": "City",
}
EVALUATIONS = "Evaluations"
PUBLISHED = "published"


@dataclass(frozen=True)
class Measured:
    """One figure of a finished evaluation.

    Attributes:
        table: Heading that its row stands under.
        system: Its row.
        model: Architecture and weights.
        data: Its column: a benchmark, or where other images lie.
        value: In percent; None where nothing could be measured.
        folder: Where the evaluation lies.
        published: What was published of it, in percent by benchmark.
    """

    table: str
    system: str
    model: str
    data: str
    value: float | None
    folder: str
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass
class JoinedTable:
    """Rows of one heading.

    Attributes:
        columns: Data sets, in the papers' order, then others.
        rows: Figures of each row by column.
    """

    name: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def cells(self) -> Iterator[tuple[str, list[float | None]]]:
        """Yield each row's name with its figures and, where it has all of them, their mean."""
        for name, figures in self.rows.items():
            values = [figures.get(column) for column in self.columns]
            known = [value for value in values if value is not None]
            yield name, [*values, sum(known) / len(known) if len(known) == len(values) else None]


def read_evaluations(places: Iterable[str], figure: Figure = "miou") -> tuple[list[Measured], list[str]]:
    """Read the reports of finished evaluations, single ones and grids.

    Args:
        places: Folders; those that hold no report are passed over.
        figure: What is read.

    Returns:
        Every figure, and the folders without one.

    Raises:
        StorageError: A report cannot be read as one.
    """
    found: list[Measured] = []
    without = []
    for place in places:
        folder = Folder(place)
        names = [name for name in (EVALUATION, GRID) if folder.exists(name)]
        if not names:
            without.append(folder.public_uri)
        for name in names:
            try:
                found += _figures(json.loads(folder.read(name)), folder.public_uri, figure)
            except (ValueError, KeyError, TypeError) as error:
                raise StorageError(
                    f"{folder.public_uri}/{name} is no report of an evaluation ({type(error).__name__}: {error}); "
                    "leave that folder out, or evaluate anew"
                ) from error
    return found, without


def _figures(report: Mapping[str, Any], folder: str, figure: str) -> Iterator[Measured]:
    data = report["benchmark"] or report["source"]["uri"]
    for entry in report.get("rows", [report]):
        settings = entry["settings"]
        model = f"{settings['model']['name']} {settings['model']['pretrained']}"
        value = None if entry[figure] is None else 100 * entry[figure]
        if "table" in entry:
            figures = _published_by_name().get(entry["name"], {})
            yield Measured(entry["table"], entry["name"], model, data, value, folder, figures)
        else:
            system = published_system(settings)
            figures = system.miou if system and system.whole else {}
            yield Measured(EVALUATIONS, _system(settings), model, data, value, folder, figures)


def _published_by_name() -> Mapping[str, Mapping[str, float]]:
    return {system.name: system.miou for system in list_systems()}


def _system(settings: Mapping[str, Any]) -> str:
    """Name what an evaluation measured."""
    purified, refine = "", settings.get("refine", "none")
    if settings["purification"]["method"] == "freecp":
        thresholds = settings["purification"]["thresholds"]
        purified = f" + FreeCP, {'tuned' if thresholds == 'fixed' else thresholds}"
    elif settings["purification"]["method"] == "car":
        purified = " + CaR"
    switched = [name for name in ("feedback", "clustering") if settings.get(settings["host"], {}).get(name)]
    return ", ".join([f"{settings['host']}{purified}{'' if refine == 'none' else f' + {refine}'}", *switched])


def join(figures: Sequence[Measured], published: bool = False) -> list[JoinedTable]:
    """Put figures into tables; what was measured twice keeps both rows, named by their folders.

    Args:
        figures: As `read_evaluations` gives them.
        published: Each system's published figures follow it, where there are some.
    """
    several = len({entry.model for entry in figures}) > 1
    tables: dict[str, JoinedTable] = {}
    for entry in figures:
        own = [other.data for other in figures if other.table == entry.table]
        table = tables.setdefault(entry.table, JoinedTable(entry.table, _in_order(own)))
        name = f"{entry.system}, {entry.model}" if several else entry.system
        if entry.data in table.rows.get(name, {}):
            name = f"{name} ({entry.folder.rstrip('/').rpartition('/')[2]})"
        table.rows.setdefault(name, {})[entry.data] = entry.value
        known = entry.published if published else {}
        if known:
            table.rows.setdefault(
                f"{name}, {PUBLISHED}", {column: known.get(column) for column in table.columns}
            )
    return list(tables.values())


def _in_order(data: Iterable[str]) -> tuple[str, ...]:
    names = dict.fromkeys(data)
    return tuple([name for name in ORDER if name in names] + [name for name in names if name not in ORDER])


def write_table(tables: Sequence[JoinedTable], way: TableFormat) -> str:
    """Write tables as Markdown, CSV or LaTeX; figures in percent, one decimal (CSV: four)."""
    if way == "csv":
        return _csv(tables)
    drawn = [_markdown(table) if way == "markdown" else _latex(table) for table in tables]
    return "\n\n".join(drawn) + "\n"


def _heads(table: JoinedTable) -> list[str]:
    return [*(TITLES.get(column, column) for column in table.columns), "average"]


def _markdown(table: JoinedTable) -> str:
    heads = _heads(table)
    lines = [f"### {table.name}", "", f"| | {' | '.join(heads)} |", "|---" + "|---:" * len(heads) + "|"]
    lines += [f"| {name} | {' | '.join(map(_percent, values))} |" for name, values in table.cells()]
    return "\n".join(lines)


def _latex(table: JoinedTable) -> str:
    heads = _heads(table)
    lines = [f"% {table.name}", rf"\begin{{tabular}}{{l{'r' * len(heads)}}}", r"\hline"]
    lines += [" & ".join(["system", *map(_escaped, heads)]) + r" \\", r"\hline"]
    lines += [" & ".join([_escaped(name), *map(_percent, values)]) + r" \\" for name, values in table.cells()]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


def _csv(tables: Sequence[JoinedTable]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = _in_order(column for table in tables for column in table.columns)
    writer.writerow(["table", "system", *columns, "average"])
    for table in tables:
        for name, values in table.cells():
            own = dict(zip([*table.columns, "average"], values, strict=True))
            cells = [own.get(column) for column in (*columns, "average")]
            writer.writerow([table.name, name, *("" if value is None else f"{value:.4f}" for value in cells)])
    return text.getvalue()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _escaped(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(character, rf"\{character}" if character != "\\" else r"\textbackslash ")
    return text
