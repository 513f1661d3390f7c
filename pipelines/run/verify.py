"""Whether an output holds what it says it holds: every marker's files, their sizes, footers and, if asked, contents."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ovss_core.errors import OvssError, StorageError
from pipelines.run.manifest import read_manifest
from pipelines.run.manifest_files import (
    COMPLETE,
    LISTS,
    PART,
    Manifest,
    part_file,
    read_part,
    shard_file,
    shard_of,
)
from pipelines.run.publish import (
    PARTS,
    Published,
    is_published_name,
    published_sizes,
    read_part_rows,
    read_published,
    take_back,
)
from pipelines.run.record import CLEARING, OLDER, RUN, SUMMARY, table_name
from pipelines.run.side_by_side import in_order
from pipelines.run.sink import (
    DONE,
    FAILED,
    OutputTable,
    finished_file,
    marker_file,
    read_marker,
    reopen_parts,
)
from pipelines.run.state_files import DamagedFileError, read_json, read_table
from pipelines.storage import Folder
from pipelines.transport.causes import one_line

_LOG = logging.getLogger(__name__)
_THREADS = 16


def damaged_parts(
    output: Folder, manifest: Manifest, table: str, content: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield the parts whose markers do not tell the truth, with what is wrong, in order.

    Args:
        table: Folder of the finished rows.
        content: Read every page of every file and compare the ids with the manifest's, too.
    """
    done = {name.removesuffix(".json") for name in output.names(DONE)}
    published = read_published(output, table)

    def check(part: str) -> str | None:
        try:
            check_part(output, part, table, published, manifest.parts[part])
        except DamagedFileError as error:
            return str(error)
        try:
            if content:
                _check_content(output, part, table, published)
        except DamagedFileError as error:
            # the next start, which looks at sizes and footers, would not see it
            return f"{error}; remove {marker_file(part)}, and the same command does the part again"
        return None

    names = [part for part in manifest.parts if part in done]
    for part, problem in zip(names, in_order(check, names, _THREADS), strict=True):
        if problem is not None:
            yield part, problem


def is_whole(output: Folder, manifest: Manifest, table: str) -> bool:
    """Say whether every part is finished and published, and its marker tells the truth."""
    done = set(output.names(DONE))
    finished = not manifest.unlisted and all(f"{part}.json" in done for part in manifest.parts)
    finished = finished and not output.names(PARTS) and not foreign_files(output, manifest, table)
    return finished and next(damaged_parts(output, manifest, table), None) is None


def reopen_damaged(output: Folder, manifest: Manifest, table: OutputTable) -> list[str]:
    """Take back the markers that do not tell the truth; return their parts, which are to be done again."""
    _take_back_unmarked(output, table)
    found = list(damaged_parts(output, manifest, table.name))
    for part, problem in found:
        _LOG.warning("%s; %s is done again as far as its files do not hold it", problem, part)
    reopen_parts(output, [part for part, _ in found], table, keep_failures=True)
    return [part for part, _ in found]


def _take_back_unmarked(output: Folder, table: OutputTable) -> None:
    """Take published files apart that hold a part without a marker, such as one that somebody removed."""
    done = {name.removesuffix(".json") for name in output.names(DONE)}
    for name, held in read_published(output, table.name).files.items():
        if not held.keys() <= done:
            take_back(output, table.schema, name, held)


def check_part(output: Folder, part: str, table: str, published: Published, images: int | None = None) -> int:
    """Check that a finished part's files hold what its marker says; return its number of images.

    Args:
        published: What `read_published` found.
        images: Images of the part, where it is listed.

    Raises:
        DamagedFileError: The first file that does not.
    """
    marker = read_marker(output, part)
    if images is not None and marker["images"] != images:
        reason = f"it counts {marker['images']} images, the manifest {images}"
        raise DamagedFileError(output, marker_file(part), reason)
    files = marker.get("files") or {}
    sizes = {name: entry.get("bytes") for name, entry in files.items() if isinstance(entry, dict)}
    if (found := published.rows_of(part)) is None:
        _check_file(output, finished_file(table, part), marker["labelled"], sizes.get(table))
    elif found != marker["labelled"]:
        reason = f"it has {found} rows of {part} instead of {marker['labelled']}"
        raise DamagedFileError(output, published.places[part], reason)
    _check_file(output, finished_file(FAILED, part), marker["failed"], sizes.get(FAILED))
    counted: int = marker["images"]
    _check_file(output, part_file(part), counted, None, part)
    return counted


def _check_file(output: Folder, name: str, rows: int, size: int | None, lists: str | None = None) -> None:
    info = file_info(output, name)
    if rows == 0:
        if info.is_file:
            raise DamagedFileError(output, name, "its marker says that no row belongs there")
        return
    if not info.is_file:
        raise DamagedFileError(output, name, "the file is gone")
    if size is not None and info.size is not None and info.size != size:
        raise DamagedFileError(output, name, f"it has {info.size:,} bytes instead of {size:,}")
    found = footer_rows(output, name, lists)
    if found != rows:
        raise DamagedFileError(output, name, f"it has {found} rows instead of {rows}")


def _check_content(output: Folder, part: str, table: str, published: Published) -> None:
    ids: list[str] = []
    for name in (table, FAILED):
        if name == table and part in published.places:
            rows = read_part_rows(output, part, published)
        elif file_info(output, finished_file(name, part)).is_file:
            rows = read_table(output, finished_file(name, part))
        else:
            continue
        if "image_id" not in rows.column_names:
            raise DamagedFileError(output, finished_file(name, part), "it has no column 'image_id'")
        ids += rows["image_id"].to_pylist()
    listed = read_part(output, part)["image_id"].to_pylist()
    if len(set(listed)) != len(listed):
        raise DamagedFileError(output, part_file(part), "an image comes twice")
    if sorted(ids) != sorted(listed):
        strange = next(iter(set(ids) ^ set(listed)), None)
        reason = "an image has two rows" if strange is None else f"{strange!r} is in one of them only"
        raise DamagedFileError(output, marker_file(part), f"rows and manifest differ: {reason}")


def file_info(output: Folder, name: str) -> pafs.FileInfo:
    """Return kind and size of a file.

    Raises:
        StorageError: The storage does not answer.
    """
    path = f"{output.path.rstrip('/')}/{name}"
    try:
        return output.filesystem.get_file_info(path)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot reach {name} of {output.public_uri}: {one_line(error)}") from error


def footer_rows(output: Folder, name: str, lists: str | None = None) -> int:
    """Return the number of rows that a Parquet file's footer says.

    Args:
        lists: For a list of images, the part that it must be of; older ones do not say.

    Raises:
        DamagedFileError: There is no footer, or the list is another part's.
    """
    path = f"{output.path.rstrip('/')}/{name}"
    try:
        with output.filesystem.open_input_file(path) as stream:
            footer = pq.read_metadata(stream)
            part = (footer.metadata or {}).get(LISTS, b"").decode()
            is_list = "path" in footer.schema.names
            rows: int = footer.num_rows if "image_id" in footer.schema.names else -1
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedFileError(output, name, one_line(error)) from error
    if rows < 0:
        raise DamagedFileError(output, name, "it has no column 'image_id'")
    if lists and (not is_list or part not in ("", lists)):
        raise DamagedFileError(
            output, name, f"it is the list of {part}" if part else "it is no list of images"
        )
    return rows


def foreign_files(output: Folder, manifest: Manifest, table: str) -> list[str]:
    """Return files named like a run's that hold nothing of it; readers of the folder would take their rows."""
    published = read_published(output, table)
    return [
        *(
            f"{table}/{name}"
            for name in output.names(table)
            if f"{table}/{name}" not in published.files
            and (is_published_name(table, name) or PART.fullmatch(name.removesuffix(".parquet")))
        ),
        *(
            f"{folder}/{name}"
            for folder, ending in ((FAILED, ".pq"), (DONE, ".json"))
            for name in output.names(folder)
            if _is_foreign(name.removesuffix(ending), manifest)
        ),
    ]


def _is_foreign(part: str, manifest: Manifest) -> bool:
    if not PART.fullmatch(part) or part in manifest.parts:
        return False
    return shard_of(part) not in manifest.unlisted  # of a shard that is still to be listed, it may be right


@dataclass
class Verdict:
    """What `verify_output` found.

    Attributes:
        problems: One line each; empty for an output that is whole.
    """

    images: int = 0
    labelled: int = 0
    failed: int = 0
    parts: int = 0
    problems: list[str] = field(default_factory=list)


def verify_output(output: Folder, content: bool = False) -> Verdict:
    """Check a whole output; nothing is changed.

    Args:
        content: Read everything, instead of sizes and footers only.

    Raises:
        StorageError: There is no output of a run.
    """
    if not any(output.exists(name) for name in (RUN, COMPLETE, OLDER, CLEARING)):
        raise StorageError(f"{output.public_uri} is no output of ovss: there is neither {RUN} nor {COMPLETE}")
    verdict = Verdict()
    if output.exists(OLDER) and not output.exists(CLEARING):
        verdict.problems.append(
            "an older version of ovss wrote this, in another layout; only that version verifies it"
        )
        return verdict
    if output.exists(CLEARING):
        verdict.problems.append(
            "an --overwrite was cut short while it removed this run; the next start ends that and begins anew"
        )
        return verdict
    table = _table_of(output, verdict)
    try:
        manifest = read_manifest(output)
    except OvssError as error:
        verdict.problems.append(f"{error}; a start with the same settings repairs it")
        return verdict
    verdict.images, verdict.parts = manifest.images, len(manifest.parts)
    for part, problem in damaged_parts(output, manifest, table, content):
        verdict.problems.append(f"{part}: {problem}")
    _count(output, manifest, verdict)
    damaged = read_published(output, table).damaged
    verdict.problems += [
        f"{name} belongs to no part of the manifest"
        for name in foreign_files(output, manifest, table)
        if name not in damaged
    ]
    verdict.problems += damaged.values()
    return verdict


def _count(output: Folder, manifest: Manifest, verdict: Verdict) -> None:
    done = {name.removesuffix(".json") for name in output.names(DONE)}
    open_parts = [part for part in manifest.parts if part not in done]
    if open_parts:
        told = f"{len(open_parts)} of {len(manifest.parts)} parts are open, such as {open_parts[0]}"
        verdict.problems.append(f"the run is not finished: {told}")
    if manifest.unlisted:
        first = manifest.unlisted[0]
        verdict.problems.append(
            f"the run is not finished: {len(manifest.unlisted)} shards are not listed to their end, such as "
            f"{manifest.containers[first]!r} (there is no sound {shard_file(first)})"
        )
    for part in manifest.parts:
        if part in done:
            try:
                marker = read_marker(output, part)
            except DamagedFileError:
                continue  # is among the problems
            verdict.labelled += marker["labelled"]
            verdict.failed += marker["failed"]
    if not open_parts and (hidden := output.names(PARTS)):
        told = f"{len(hidden)} parts are not put together in files for readers yet, such as {hidden[0]}"
        verdict.problems.append(f"the run is not finished: {told}")
    if not open_parts and not manifest.unlisted:
        verdict.problems += _changed_files(output)
    if not open_parts and not manifest.unlisted and not verdict.problems:
        verdict.problems += _summary_problems(output, verdict)


def _changed_files(output: Folder) -> list[str]:
    """Name the published files that are gone or of another size than when the run ended."""
    with suppress(DamagedFileError):
        written = read_json(output, SUMMARY, {"files": dict})["files"]
        there = published_sizes(output)
        return [
            f"{name} is gone"
            if name not in there
            else f"{name} has {there[name]:,} bytes instead of {size:,}"
            for name, size in written.items()
            if there.get(name) != size
        ]
    return []


def _summary_problems(output: Folder, verdict: Verdict) -> list[str]:
    counts = {"images": verdict.images, "labelled": verdict.labelled, "failed": verdict.failed}
    try:
        summary = read_json(output, SUMMARY, dict.fromkeys(counts, int))
    except DamagedFileError as error:
        return [f"{error}; a start with the same settings writes it anew"]
    wrong = [name for name, count in counts.items() if summary[name] != count]
    return [f"{SUMMARY} says {summary[name]} {name}, the parts hold {counts[name]}" for name in wrong]


def _table_of(output: Folder, verdict: Verdict) -> str:
    try:
        identity: dict[str, Any] = read_json(output, RUN, {"identity": dict})["identity"]
    except DamagedFileError as error:
        verdict.problems.append(f"{error}; a start with the same settings writes it anew")
        identity = {}
    for name in output.names(DONE):
        with suppress(DamagedFileError):
            marker = read_marker(output, name.removesuffix(".json"))
            return next((table for table in marker.get("files") or () if table != FAILED), "labels")
    return table_name(identity) or "labels"
