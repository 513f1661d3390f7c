"""What an evaluation leaves behind: `evaluation.json`, and for a grid `grid.json` and `grid.md`."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from ovss_core.config import HEAD_SETTINGS, REFINER_SETTINGS, SegmenterConfig
from ovss_core.evaluation.measurement import doubts, summarize
from ovss_core.vocabulary import Vocabulary
from pipelines.evaluate.grid import GridRow
from pipelines.evaluate.table import total_measurement, total_pixels
from pipelines.pages import render
from pipelines.run.record import RUN
from pipelines.run.weight_hashes import CLIP_HASH, PROXY_HASH
from pipelines.storage import Folder

EVALUATION, GRID, GRID_TABLE = "evaluation.json", "grid.json", "grid.md"
_COLUMNS = (
    "mIoU",
    "published (ViT-B/16)",
    "oracle",
    "gap",
    "pixel accuracy",
    "boundary mIoU",
    "vocabulary F1",
)


def score_variant(
    statistics: Mapping[str, Any], config: SegmenterConfig, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Turn one variant's summed counts into scores in [0, 1], with doubts about them and the settings that made them."""
    empty: Mapping[str, Any] = {
        "confusion": {},
        "boundary": {},
        "predicted_classes": {"hits": 0, "false_alarms": 0, "misses": 0},
    }
    total = total_measurement(statistics or empty, len(vocabulary))
    return {
        **summarize(total, vocabulary),
        "warnings": doubts(total, vocabulary, total_pixels(statistics)),
        "settings": config.to_dict(),
        "vocabulary": {"name": vocabulary.name, "hash": vocabulary.content_hash, "classes": len(vocabulary)},
    }


def run_facts(output: Folder, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every report says about its run: counts, source, weights and versions."""
    run = json.loads(output.read(RUN))
    return {
        "images": summary["images"],
        "measured": summary["labelled"],
        "failed": summary["failed"],
        "worker_seconds": round(sum(summary["seconds_by_stage"].values()), 3),
        "source": run["identity"]["source"],
        "weights_hash": run["identity"][CLIP_HASH],
        **({PROXY_HASH: proxy} if (proxy := run["identity"].get(PROXY_HASH)) else {}),
        "versions": run["versions"],
    }


def write_json(output: Folder, name: str, values: Mapping[str, Any]) -> None:
    """Write a report."""
    output.write(name, json.dumps(values, indent=2, ensure_ascii=False).encode())


def grid_entries(rows: Sequence[GridRow], statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Score every row of a grid."""
    return [
        {
            "table": row.table,
            "name": row.name,
            "published_miou": None if row.published is None else row.published / 100,
            **score_variant(statistics.get(row.key, {}), row.config, row.vocabulary),
        }
        for row in rows
    ]


def grid_markdown(entries: Sequence[Mapping[str, Any]], left_out: Sequence[str] = ()) -> str:
    """Draw a grid as Markdown tables; figures in percent, a dash where there is none; and list what was not run."""
    rows = [
        {
            "table": entry["table"],
            "name": entry["name"],
            "figures": _figures(entry),
            "settings": settings_line(entry),
        }
        for entry in entries
    ]
    tables = [(table, list(members)) for table, members in groupby(rows, itemgetter("table"))]
    return render("grid.md", tables=tables, columns=_COLUMNS, file=GRID, left_out=left_out)


def settings_line(entry: Mapping[str, Any]) -> str:
    """Name a row's host, purification, vocabulary and the settings that differ from the defaults, as flags."""
    settings, defaults = entry["settings"], SegmenterConfig().to_dict()
    purify = settings["purification"]["method"]
    refine = settings.get("refine", "none")  # a report of an earlier version has none
    named = {"host": settings["host"], "purify": purify, "vocabulary": entry["vocabulary"]["name"]}
    if refine != "none":
        named["refine"] = refine
    acting = {"windows", "labels"} | ({"purification"} if purify != "none" else set())
    acting |= {*settings["host"].split(","), refine} & (HEAD_SETTINGS | REFINER_SETTINGS)
    for group in sorted(acting):
        named |= {
            f"{group}.{name}": value
            for name, value in settings[group].items()
            if value != defaults[group][name]
        }
    return ", ".join(f"{name} `{json.dumps(value).strip(chr(34))}`" for name, value in named.items())


def _figures(entry: Mapping[str, Any]) -> list[float | None]:
    oracle, purified = entry["oracle"] or {}, entry["purified_vocabulary"] or {}
    return [
        entry["miou"],
        entry["published_miou"],
        oracle.get("miou"),
        oracle.get("gap"),
        entry["pixel_accuracy"],
        entry["boundary_miou"],
        purified.get("f1"),
    ]
