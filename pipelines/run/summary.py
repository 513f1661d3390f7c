"""Totals over all parts of a run, earlier starts included, taken from the completion markers."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ovss_core.errors import OvssError
from pipelines.run.manifest_files import Manifest
from pipelines.run.publish import published_sizes
from pipelines.run.record import SUMMARY
from pipelines.run.share import Share
from pipelines.run.side_by_side import in_order
from pipelines.run.sink import DONE, read_marker
from pipelines.run.state_files import DamagedFileError, read_json
from pipelines.storage import Folder

_THREADS = 8
_COUNTS = ("images", "labelled", "failed", "files_passed_over", "parts")


def read_markers(output: Folder, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the marker of every finished part, in order.

    Raises:
        DamagedFileError: A marker is damaged; a run would repair it.
    """
    names = set(output.names(DONE))
    finished = [part for part in manifest.parts if f"{part}.json" in names]
    yield from in_order(lambda part: read_marker(output, part), finished, _THREADS)


def write_summary(output: Folder, manifest: Manifest, run: Mapping[str, Any]) -> dict[str, Any]:
    """Add up the markers, check that no image is missing, and write `summary.json`.

    Args:
        run: What is known of this start alone, such as its seconds and images a second.

    Raises:
        OvssError: The counts do not add up.
    """
    totals: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    statistics: dict[str, Any] = {}
    for marker in read_markers(output, manifest):
        totals.update({name: marker[name] for name in ("images", "labelled", "failed")})
        seconds.update(marker["seconds"])
        add_statistics(statistics, marker["statistics"])
    summary = {
        "images": manifest.images,
        "labelled": totals["labelled"],
        "failed": totals["failed"],
        "files_passed_over": manifest.ignored,
        "parts": len(manifest.parts),
        "files": published_sizes(output),
        "seconds_by_stage": {name: round(value, 3) for name, value in seconds.items()},
        "this_start": dict(run),
        "statistics": statistics,
    }
    output.write(SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False).encode())
    if not totals["images"] == totals["labelled"] + totals["failed"] == manifest.images:
        raise OvssError(
            f"the counts do not add up: {manifest.images} images in the manifest, {totals['images']} in finished "
            f"parts, {totals['labelled']} labelled and {totals['failed']} failed; run the same command again"
        )
    return summary


def merge_summaries(output: Folder, jobs: int) -> dict[str, Any]:
    """Add up the summaries of independent jobs that lie below one output, and write `summary.json` there.

    Every job writes it when it ends, so the last one leaves the whole.

    Args:
        jobs: How many there are; those without a summary are named under ``missing``.
    """
    shares = [Share(number, jobs) for number in range(1, jobs + 1)]
    merged: dict[str, Any] = {
        "jobs": jobs, "missing": [], **dict.fromkeys(_COUNTS, 0), "seconds_by_stage": {}, "statistics": {}
    }  # fmt: skip
    for share in shares:
        try:
            found = read_json(output, f"{share.folder}/{SUMMARY}", dict.fromkeys(_COUNTS, int))
        except DamagedFileError:
            merged["missing"].append(f"{share.number}/{jobs}")
            continue
        for name in _COUNTS:
            merged[name] += found[name]
        add_statistics(merged["seconds_by_stage"], found["seconds_by_stage"])
        add_statistics(merged["statistics"], found["statistics"])
    output.write(SUMMARY, json.dumps(merged, indent=2, ensure_ascii=False).encode())
    return merged


def add_statistics(total: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add the numbers of nested mappings; what is no number is taken from the later one."""
    for name, value in part.items():
        if isinstance(value, Mapping):
            add_statistics(total.setdefault(name, {}), value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            total[name] = total.get(name, 0) + value
        else:
            total[name] = value
