"""One page that shows whether the labels of an output are any good; it needs nothing beside itself."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ovss_core.errors import StorageError
from ovss_core.vocabulary import Vocabulary, VocabularyClass
from pipelines.faults import Failure
from pipelines.label.palette import class_colors
from pipelines.label.reader import LabelFiles, open_labels
from pipelines.label.report.figures import Figures, Sample, read_failures, read_figures, read_run
from pipelines.label.report.gallery import choose_galleries, draw_row
from pipelines.pages import render
from pipelines.run.record import REPORT, RUN
from pipelines.storage import Folder

PAGE = f"{REPORT}/index.html"
IMAGES, ROWS = 8, 20_000
_CLASSES, _TOGETHER, _WORDS = 60, 16, 200
_LOG = logging.getLogger(__name__)


def write_report(output: Folder, images: int = IMAGES, rows: int = ROWS) -> dict[str, int]:
    """Write ``_report/index.html`` into an output of labels.

    Args:
        images: Of each gallery, at most.
        rows: Read about so many rows for what the markers do not count.

    Returns:
        Rows that there are, rows that were read, and pictures on the page.

    Raises:
        StorageError: There is no output of labels, or it cannot be read.
    """
    try:
        labels = open_labels(output.uri)
    except StorageError:
        if not output.exists(RUN):
            raise
        labels = None  # not a single image could be labelled: the failures are all there is to show
    figures, sample = read_figures(output, labels, rows)
    galleries, pictures = [], 0
    if labels is not None:
        colors = class_colors(_vocabulary(labels))
        for gallery in choose_galleries(output, labels, figures, sample, images):
            shots = [draw_row(labels, row, colors) for row in gallery.rows]
            pictures += sum(shot["problem"] is None for shot in shots)
            galleries.append({"name": gallery.name, "title": gallery.title, "shots": shots})
    failures, all_failures = read_failures(output)
    page = render(
        "report.html",
        place=output.public_uri,
        counts=figures.counts,
        settings=_settings(read_run(output), labels),
        failures=failures,
        all_failures=all_failures,
        galleries=galleries,
        sampled=len(sample.places),
        rows=sample.images,
        **_numbers(figures, sample, labels),
    )
    output.write(PAGE, page.encode("utf-8", "replace"))
    return {"rows": sample.images, "read": len(sample.places), "pictures": pictures}


def report_afterwards(output: Folder) -> None:
    """Write the report of a run that is finished: whatever goes wrong is a line of the log, never an error."""
    try:
        write_report(output)
    except Exception as error:
        reason = Failure.of("report", error).reason
        _LOG.warning("the report could not be written: %s; the labels are complete", reason)


def _vocabulary(labels: LabelFiles) -> Vocabulary:
    return Vocabulary(tuple(VocabularyClass(name, (name,)) for name in labels.class_names))


def _numbers(figures: Figures, sample: Sample, labels: LabelFiles | None) -> dict[str, Any]:
    """Return what the page says in numbers."""
    names = labels.class_names if labels else ()
    colors = class_colors(_vocabulary(labels)) if labels else np.zeros((0, 3), np.uint8)
    index = {name: place for place, name in enumerate(names)}
    classes = [
        entry | {"color": "#" + bytes(colors[index[entry["name"]]].tolist()).hex()}
        for entry in figures.classes
        if entry["name"] in index
    ]
    there = {entry["name"] for entry in classes}
    frequent = sorted(classes, key=lambda entry: -entry["images"])[:_TOGETHER]
    return {
        "counted": figures.counted,
        "pixels": max(1, figures.statistics.get("pixels", 0)),
        "classes": classes[:_CLASSES],
        "class_count": len(names),
        "further": max(0, len(classes) - _CLASSES),
        "absent": [name for name in names if name not in there][:_WORDS],
        "absent_count": len(names) - len(there),
        "single": [entry["name"] for entry in classes if entry["images"] == 1][:_WORDS],
        "together": {
            "names": [entry["name"] for entry in frequent],
            "counts": sample.together([index[entry["name"]] for entry in frequent]).tolist(),
        },
        "histograms": {
            name: found for name in ("margin", "disagreement") if (found := figures.histogram(name))
        },
        "kept_words": _words(figures, names),
    }


def _words(figures: Figures, names: Sequence[str]) -> dict[str, Any] | None:
    """Say how often purification kept each word; None where nothing was purified."""
    purified, kept = figures.statistics.get("purified", 0), figures.statistics.get("kept", {})
    if not purified:
        return None
    by_count = sorted(((name, kept.get(name, 0)) for name in names), key=lambda entry: (-entry[1], entry[0]))
    nowhere = [name for name, count in by_count if not count]
    return {
        "images": purified,
        "kept": [(name, count) for name, count in by_count if count][:_CLASSES],
        "once": [name for name, count in by_count if count == 1][:_WORDS],
        "nowhere": nowhere[:_WORDS],
        "nowhere_count": len(nowhere),
    }


def _settings(identity: Mapping[str, Any], labels: LabelFiles | None) -> list[tuple[str, str]]:
    """Say what made the labels, as far as `run.json` knows."""
    config = identity.get("config") or {}
    shown = {
        "model": (config.get("model") or {}).get("name"),
        "host": config.get("host"),
        "purification": (config.get("purification") or {}).get("method"),
        "refiner": config.get("refine"),
        "source": (identity.get("source") or {}).get("uri"),
        "selected from": identity.get("labels"),
        "schema": labels.version if labels else None,
    }
    return [(name, str(value)) for name, value in shown.items() if value and value != "none"]
