"""What an evaluation leaves behind: `evaluation.json`, and for a grid `grid.json` and `grid.md`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ovss_core.config import SegmenterConfig
from ovss_core.evaluation.measurement import summarise
from ovss_core.vocabulary import Vocabulary
from pipelines.evaluation.grid import GridRow
from pipelines.evaluation.table import total_measurement
from pipelines.record import RUN
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
    """Turn one variant's summed counts into scores in [0, 1], with the settings that made them."""
    empty: Mapping[str, Any] = {
        "confusion": {},
        "boundary": {},
        "predicted_classes": {"hits": 0, "false_alarms": 0, "misses": 0},
    }
    scores = summarise(total_measurement(statistics or empty, len(vocabulary)), vocabulary)
    return {
        **scores,
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
        "source": run["identity"]["source"],
        "weights_hash": run["identity"]["weights_hash"],
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


def grid_markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """Draw a grid as Markdown tables; figures in percent, a dash where there is none."""
    lines: list[str] = []
    table = None
    for entry in entries:
        if entry["table"] != table:
            table = entry["table"]
            lines += ["", f"### {table}", "", f"| | {' | '.join(_COLUMNS)} |", "|---" + "|---:" * 7 + "|"]
        lines.append(f"| {entry['name']} | {' | '.join(_percent(value) for value in _figures(entry))} |")
    lines += ["", "Settings of the rows:", ""]
    lines += [f"- {entry['table']}, {entry['name']}: `{settings_line(entry)}`" for entry in entries]
    return "\n".join(lines).strip() + "\n"


def settings_line(entry: Mapping[str, Any]) -> str:
    """Name the settings that tell the rows of a grid apart, as JSON on one line."""
    settings, purification = entry["settings"], entry["settings"]["purification"]
    shown: dict[str, Any] = {"host": settings["host"], "vocabulary": entry["vocabulary"]["name"]}
    shown |= {name: settings["windows"][name] for name in ("size", "stride", "short_side")}
    shown |= settings["labels"]
    if settings["host"] == "sfp":
        shown["sfp"] = {
            name: settings["sfp"][name]
            for name in (
                "variant",
                "outlier_mitigation",
                "attention_enhancement",
                "attention_integration",
                "integration_start",
            )
        }
    shown["purification"] = purification if purification["method"] != "none" else "none"
    return json.dumps(shown, ensure_ascii=False)


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


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
