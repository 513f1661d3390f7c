"""What a run was: `run.json`, written before the work starts, and checked by every run that comes back.

The identity decides what every mask is: configuration, vocabulary, weights and source. A second run into the
same output must have the same; otherwise one output would hold the labels of two.
"""

import json
import logging
import platform
import sys
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from importlib import metadata
from typing import Any

from ovss_core.config import SegmenterConfig
from ovss_core.errors import ConfigError, OutputMismatchError, StorageError
from ovss_core.proxy_families.registry import find_tower
from pipelines.run.fragments import FRAGMENTS
from pipelines.run.manifest_files import COMPLETE
from pipelines.run.manifest_files import FOLDER as MANIFEST
from pipelines.run.publish import PARTS
from pipelines.run.sink import DONE, FAILED
from pipelines.run.state_files import DamagedFileError, read_json, write_json
from pipelines.storage import Folder

RUN = "run.json"
SUMMARY = "summary.json"
PREVIEWS, REPORT, LOGS = "_previews", "_report", "_log"
CARD, CARD_MARK = "README.md", b"<!-- Written by ovss"
"""The data set's card, and what a card has that a run wrote and that nobody replaced."""
CLEARING = "_ovss_clearing.json"
PROBE = "_ovss_probe_"
OLDER = "manifest/complete.json"
"""What an output of the first layout has, in which lists, failures and previews lay in folders like data."""
_LOG = logging.getLogger(__name__)
_PACKAGES = ("ovss", "ray", "torch", "open_clip_torch", "timm", "pyarrow", "pillow", "numpy", "fsspec")


def check_identity(output: Folder, identity: Mapping[str, Any], but: Collection[str] = ()) -> None:
    """Compare this run with the one that wrote the output before, all but the named entries.

    Raises:
        OutputMismatchError: Something that decides the results differs, or the folder holds something else.
        StorageError: What the run was cannot be known any more.
    """
    if output.is_file():
        raise StorageError(f"cannot write under {output.public_uri}: it is a file; give a folder as --output")
    if output.exists(OLDER) and not output.exists(CLEARING):
        raise OutputMismatchError(
            f"{output.public_uri} was begun by an older version of ovss, in another layout (labels/1); its labels stay "
            "readable, but a run cannot go on there: give another --output, or --overwrite to replace it"
        )
    if output.exists(CLEARING):
        return  # `write_run` ends the clearing that an --overwrite began; nothing of that run is left to compare
    try:
        before = read_json(output, RUN, {"identity": dict})["identity"]
    except DamagedFileError as error:
        _check_digest(output, None if but else identity, error)
        return
    before, now = _in_todays_fields(before), json.loads(json.dumps(identity))
    for name in but:
        before.pop(name, None)
        now.pop(name, None)
    differences = [*_described(before, now), *_differences("", before, now)]
    if differences:
        raise OutputMismatchError(
            f"{output.public_uri} belongs to another run: {'; '.join(differences[:5])}; give another --output, "
            "the same settings, or --overwrite to replace it"
        )


def _check_digest(output: Folder, identity: Mapping[str, Any] | None, error: DamagedFileError) -> None:
    """Decide without `run.json`: what the manifest says of the run suffices where it is the same."""
    work = output.names(DONE) or output.folders(FRAGMENTS)
    if not output.exists(RUN) and not work and not output.exists(COMPLETE):
        found = [name for name in (*output.names(), *output.folders()) if not name.startswith(PROBE)]
        if found:
            raise OutputMismatchError(
                f"{output.public_uri} holds files that are not of a run ({', '.join(found[:3])}); give an empty or "
                "new folder as --output"
            )
        return
    stored = _manifest_identity(output)
    if identity is None:
        return  # only a part of it is known yet; it is checked again when all of it is
    if stored == identity_digest(identity):
        _LOG.warning("%s; it is written anew, for the manifest says that this is the same run", error)
    elif stored is not None:
        raise OutputMismatchError(
            f"{error}, and {output.public_uri} belongs to a run with other settings; give those, another --output, or "
            "--overwrite to replace it"
        )
    elif work:
        raise StorageError(
            f"{error}, and so nothing says with which settings the labels there were made; put the file back from a "
            "copy, give another --output, or --overwrite to replace the run"
        )


def identity_digest(identity: Mapping[str, Any]) -> str:
    """Return a short text that differs where the identity does."""
    plain = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def read_identity(output: Folder) -> dict[str, Any]:
    """Return what decides the results of the run that made an output; empty where `run.json` does not tell."""
    try:
        identity: dict[str, Any] = read_json(output, RUN, {"identity": dict})["identity"]
    except DamagedFileError:
        return {}
    return identity


def stored_identity(output: Folder) -> str | None:
    """Return the digest of the identity in `run.json`, if it can be read."""
    try:
        return identity_digest(read_json(output, RUN, {"identity": dict})["identity"])
    except DamagedFileError:
        return None


def _manifest_identity(output: Folder) -> str | None:
    try:
        digest: str = read_json(output, COMPLETE, {"identity": str})["identity"]
    except DamagedFileError:
        return None
    return digest


def continues_run(output: Folder, identity: Mapping[str, Any], but: Collection[str] = ()) -> bool:
    """Say whether this run goes on with what the output holds; False where that is to be removed first.

    A run that stopped before it stored any image leaves nothing worth keeping, and does not stand in the way of a
    corrected command.

    Raises:
        OutputMismatchError: As `check_identity`, where images are stored.
    """
    try:
        check_identity(output, identity, but)
    except NotADirectoryError:  # nothing is there to compare; that it cannot be written to is said next
        return True
    except OutputMismatchError:
        if not output.exists(RUN) or holds_images(output):
            raise
        return False
    return True


def holds_images(output: Folder) -> bool:
    """Say whether a run has stored any image in an output, labelled or failed; if not, another may take its place."""
    parts = [f"{FRAGMENTS}/{part}" for part in output.folders(FRAGMENTS)]
    return any(output.names(folder) for folder in (DONE, PARTS, FAILED, "failures", *_tables(output), *parts))


def table_name(identity: Mapping[str, Any]) -> str | None:
    """Return the folder of the finished rows of a run, which its identity names as its schema: ``labels/1``."""
    name, slash, _ = str(identity.get("schema", "")).partition("/")
    return name if slash else None


def _tables(output: Folder) -> list[str]:
    """Return the folders that may hold finished rows: the one that `run.json` names, or all that are no part of a run."""
    named = table_name(read_identity(output))
    return (
        [named]
        if named
        else [
            name
            for name in output.folders()
            if name not in (MANIFEST, PREVIEWS, REPORT, LOGS, "manifest", "previews")
        ]
    )


def write_run(output: Folder, identity: Mapping[str, Any], details: Mapping[str, Any]) -> None:
    """Write `run.json`, or add this start to it; what a clearing that was cut short left goes first.

    Args:
        identity: What decides the results; compared by `check_identity`.
        details: What else a reader wants to know: resolved settings that do not change the results.
    """
    if output.exists(CLEARING):
        clear(output)
    for name in output.names():
        if name.startswith(PROBE):  # of a start that was killed at its first moment
            output.remove(name)
    try:
        starts = read_json(output, RUN, {"starts": list})["starts"]
    except DamagedFileError:
        starts = []
    started = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **details}
    record = {
        "identity": identity,
        "versions": package_versions(),
        "machine": machine_facts(),
        "starts": [*starts, started],
    }
    write_json(output, RUN, record, indent=2)


def remove_run(output: Folder, table: str) -> None:
    """Remove what a run of ovss wrote into a folder, and nothing else.

    A file `CLEARING` is there from the first to the last moment: whatever start comes next ends the clearing before
    it does anything else. Markers go before the files that they vouch for.
    """
    if not any(output.exists(name) for name in (RUN, COMPLETE, OLDER, CLEARING)):
        return
    if not output.exists(CLEARING):
        output.write(CLEARING, json.dumps({"table": table, "older": output.exists(OLDER)}).encode())
    clear(output)


def clear(output: Folder) -> None:
    """End the clearing of an output."""
    try:
        begun = read_json(output, CLEARING, {"table": str})
    except DamagedFileError:
        begun = {}
    output.remove(COMPLETE)
    older = ("manifest", "failures", "previews") if begun.get("older") else ()
    table = begun.get("table", "labels")
    for folder in (DONE, FRAGMENTS, MANIFEST, table, PARTS, FAILED, PREVIEWS, REPORT, LOGS, *older):
        output.remove_folder(folder)
    if output.exists(CARD) and CARD_MARK in output.read(CARD):
        output.remove(CARD)
    for name in (SUMMARY, RUN, CLEARING):
        output.remove(name)


def _in_todays_fields(identity: dict[str, Any]) -> dict[str, Any]:
    """Read the settings of a run that another version may have begun: what it did not know has its default."""

    def read(entry: Any) -> Any:
        if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict):
            return entry
        try:
            return entry | {"config": SegmenterConfig.from_dict(entry["config"]).deciding()}
        except (ConfigError, TypeError):
            return entry  # a setting that this version lacks differs from it, and is named

    if isinstance(identity.get("variants"), dict):
        identity = identity | {"variants": {key: read(entry) for key, entry in identity["variants"].items()}}
    found: dict[str, Any] = json.loads(json.dumps(read(identity)))
    return found


def _described(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Compare the sentences of classes, and leave them out of what is compared further."""
    was, is_now = before.pop("descriptions", None), now.pop("descriptions", None)
    if was == is_now:
        return
    if was and is_now:
        different = [name for name in was.keys() | is_now.keys() if was.get(name) != is_now.get(name)]
        yield f"descriptions of {len(different)} classes differ, such as {min(different)!r}"
    elif is_now:
        yield f"descriptions were none, are now of {len(is_now)} classes (--descriptions none goes on without)"
    else:
        yield f"descriptions were of {len(was or {})} classes, are now none (give them with --descriptions FILE)"


def _differences(path: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(f"{path}.{name}" if path else name, before.get(name), now.get(name))
    elif before != now:
        yield f"{path} was {_short(before)}, is now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def proxy_facts(config: SegmenterConfig) -> dict[str, Any]:
    """Return what a start says of the second tower: its name and its weights' license; nothing where there is none."""
    if not config.needs_proxy or config.proxy.name is None:
        return {}
    return {"proxy": find_tower(config.proxy.name).facts}


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    return {"python": platform.python_version()} | _installed()


@cache
def _installed() -> dict[str, str]:
    """Read what is installed once a process: each package's whole description has to be parsed."""
    found = {}
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
