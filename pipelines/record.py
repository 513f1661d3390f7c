"""What a run was: `run.json`, written before the work starts, and checked by every run that comes back.

The identity decides what every mask is: configuration, vocabulary, weights and source. A second run into the
same output must have the same; otherwise one output would hold the labels of two.
"""

import json
import platform
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from ovss_core.errors import OutputMismatchError
from pipelines.manifest import FOLDER as MANIFEST
from pipelines.sink import DONE, FAILED, FRAGMENTS
from pipelines.storage import Folder

RUN = "run.json"
SUMMARY = "summary.json"
PREVIEWS = "previews"
_PACKAGES = ("ovss", "ray", "torch", "open_clip_torch", "pyarrow", "pillow", "numpy", "fsspec")


def check_identity(output: Folder, identity: Mapping[str, Any]) -> None:
    """Compare this run with the one that wrote the output before.

    Raises:
        OutputMismatchError: Something that decides the results differs, or the folder holds something else.
    """
    if not output.exists(RUN):
        if output.exists() and (found := [*output.names(), *output.folders()]):
            raise OutputMismatchError(
                f"{output.public_uri} holds files that are not of a run ({', '.join(found[:3])}); give an empty or "
                "new folder as --output"
            )
        return
    before = json.loads(output.read(RUN))["identity"]
    differences = list(_differences("", before, json.loads(json.dumps(identity))))
    if differences:
        raise OutputMismatchError(
            f"{output.public_uri} belongs to another run: {'; '.join(differences[:5])}; give another --output, "
            "the same settings, or --overwrite to replace it"
        )


def continues_run(output: Folder, identity: Mapping[str, Any]) -> bool:
    """Say whether this run goes on with what the output holds; False where that is to be removed first.

    A run that stopped before it stored any image leaves nothing worth keeping, and does not stand in the way of a
    corrected command.

    Raises:
        OutputMismatchError: As `check_identity`, where images are stored.
    """
    try:
        check_identity(output, identity)
    except OutputMismatchError:
        if not output.exists(RUN) or holds_images(output):
            raise
        return False
    return True


def holds_images(output: Folder) -> bool:
    """Say whether a run has stored any image in an output, labelled or failed; if not, another may take its place."""
    parts = [f"{FRAGMENTS}/{part}" for part in output.folders(FRAGMENTS)]
    return any(output.names(folder) for folder in (DONE, FAILED, "labels", "measurements", *parts))


def write_run(output: Folder, identity: Mapping[str, Any], details: Mapping[str, Any]) -> None:
    """Write `run.json`, or add this start to it.

    Args:
        identity: What decides the results; compared by `check_identity`.
        details: What else a reader wants to know: resolved settings that do not change the results.
    """
    starts = json.loads(output.read(RUN))["starts"] if output.exists(RUN) else []
    started = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **details}
    record = {
        "identity": identity,
        "versions": package_versions(),
        "machine": machine_facts(),
        "starts": [*starts, started],
    }
    output.write(RUN, json.dumps(record, indent=2, ensure_ascii=False).encode())


def remove_run(output: Folder, table: str) -> None:
    """Remove what a run of ovss wrote into a folder, and nothing else; `run.json` goes last."""
    if not output.exists(RUN):
        return
    for folder in (table, FAILED, DONE, FRAGMENTS, MANIFEST, PREVIEWS):
        output.remove_folder(folder)
    for name in (SUMMARY, RUN):
        output.remove(name)


def _differences(path: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(f"{path}.{name}" if path else name, before.get(name), now.get(name))
    elif before != now:
        yield f"{path} was {_short(before)}, is now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine_facts() -> dict[str, Any]:
    """Describe the machine, without names that belong to it alone."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "byte_order": sys.byteorder,
    }
