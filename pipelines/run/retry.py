"""What failed before, to be tried again: images one by one, broken shards and tables as a whole."""

from dataclasses import replace

from pipelines.run.manifest import prepare_manifest, refresh_manifest
from pipelines.run.manifest_files import (
    Manifest,
    digest_of_ids,
    part_file,
    read_part,
    shard_file,
    shard_of,
    write_complete,
    write_part,
)
from pipelines.run.record import stored_identity
from pipelines.run.sink import DONE, FAILED, OutputTable, finished_file, read_marker, reopen_parts
from pipelines.run.state_files import DamagedFileError
from pipelines.sources import ImageRecord, Source
from pipelines.storage import Folder


def reopen_failed(
    output: Folder, source: Source, manifest: Manifest, table: OutputTable, shard_size: int
) -> Manifest:
    """Take back the markers of parts with failures; shards and tables that were broken are listed anew.

    Returns:
        The manifest as it is now.
    """
    broken = {number for number, entry in (manifest.listings or {}).items() if entry.problem is not None}
    reopened = []
    for name in output.names(DONE):
        part = name.removesuffix(".json")
        try:
            failed = read_marker(output, part)["failed"] if part in manifest.parts else 0
        except DamagedFileError:
            continue  # whoever checks the markers takes it back
        if failed or shard_of(part) in broken:
            reopened.append(part)
    reopen_parts(output, reopened, table)
    for number in sorted(broken):
        output.remove(shard_file(number))
    if manifest.streamed:
        return refresh_manifest(output, manifest)
    return _list_broken_anew(output, source, manifest, table, reopened, shard_size)


def _list_broken_anew(
    output: Folder,
    source: Source,
    manifest: Manifest,
    table: OutputTable,
    reopened: list[str],
    shard_size: int,
) -> Manifest:
    """Take the rows that stand for whole tables out of the lists, and list those tables once more."""
    parts, digests, again = dict(manifest.parts), dict(manifest.digests), set()
    for part in reopened if manifest.containers else ():
        rows = [ImageRecord(**row) for row in read_part(output, part).to_pylist()]
        tables = {
            row.image_id for row in rows if row.container == "broken" and row.image_id in manifest.containers
        }
        if tables:
            again |= tables
            kept = [row for row in rows if row.image_id not in tables]
            parts[part] = len(kept)
            if kept:
                write_part(output, part, kept)
                digests[part] = digest_of_ids(row.image_id for row in kept)
            else:
                del parts[part]
                for name in (part_file(part), finished_file(FAILED, part), finished_file(table.name, part)):
                    output.remove(name)
    if not again:
        return manifest
    containers = tuple(name for name in manifest.containers if name not in again)
    kept_manifest = replace(manifest, parts=parts, containers=containers, digests=digests)
    write_complete(output, kept_manifest, stored_identity(output))
    return prepare_manifest(output, source, shard_size, relist=True)
