"""The list of images of a run: made once, kept, and brought up to date when the run comes back.

Plain files and tables are listed here. Shards are only named here: whoever streams one lists it (`pipelines.shards`),
so that its bytes are read once. A run that comes back reads what is listed instead of listing anew; images and
shards that came to the source since are appended as new parts, so that no finished part ever changes.

A list that is damaged is made again: from the rows that the part has already, in the words of the source where it
still has the image; the part's other images are listed again as new ones.
"""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from ovss_core.errors import OutputMismatchError, StorageError
from pipelines.fragments import FRAGMENTS
from pipelines.id_set import IdSet, digests_of, distinct
from pipelines.manifest_files import (
    COMPLETE,
    FOLDER,
    PART,
    Manifest,
    ShardListing,
    part_file,
    part_name,
    read_complete,
    read_listing,
    read_part,
    shard_file,
    shard_of,
    write_complete,
    write_part,
)
from pipelines.record import stored_identity
from pipelines.sink import DONE
from pipelines.sources.record import ImageRecord, Source
from pipelines.state_files import DamagedFileError, read_table
from pipelines.storage import Folder, join_uri, redact

__all__ = ["Manifest", "prepare_manifest", "read_manifest", "read_part", "refresh_manifest"]
_LOG = logging.getLogger(__name__)
_THREADS = 8
_LOST = "the list that said where this image lies was damaged, and the source does not hold it any more"


def prepare_manifest(output: Folder, source: Source, shard_size: int, relist: bool = False) -> Manifest:
    """Write the manifest of a new output, or bring that of an existing one up to date.

    Args:
        shard_size: Images of a part, and so of an output file; at least 1.
        relist: List containers that are known, too, and take what is new in them.

    Raises:
        StorageError: The source holds no image.
        OutputMismatchError: The output was begun by an older version that listed shards in another way.
    """
    kept, sound = _kept(output)
    if is_streamed(source):
        return _prepare_shards(output, source, kept, sound)
    if kept is not None and kept.streamed:
        raise OutputMismatchError(f"{output.public_uri} was begun with shards; give another --output")
    return _prepare_listed(output, source, kept, sound, shard_size, relist)


def is_streamed(source: Source) -> bool:
    """Say whether the images of a source are listed by the workers that read them, shard by shard."""
    return bool(getattr(source, "streamed", False))


def read_manifest(output: Folder) -> Manifest:
    """Read the manifest that an output has.

    Raises:
        DamagedFileError: It is damaged; a run would repair it.
    """
    return refresh_manifest(output, read_complete(output))


def refresh_manifest(output: Folder, manifest: Manifest) -> Manifest:
    """Take in what workers have listed since; a listing that is damaged counts as none."""
    if not manifest.streamed:
        return manifest
    there = set(output.names(FOLDER))
    numbers = [n for n in range(len(manifest.containers)) if shard_file(n).rpartition("/")[2] in there]

    def read(number: int) -> ShardListing | None:
        try:
            listing = read_listing(output, number)
        except DamagedFileError as error:
            _LOG.warning("%s; the shard is listed again", error)
            return None
        return listing if listing.shard == manifest.containers[number] else None

    with ThreadPoolExecutor(_THREADS) as threads:
        found = zip(numbers, threads.map(read, numbers), strict=True)
        listings = {number: listing for number, listing in found if listing}
    parts = {
        part_name(number, chunk): count
        for number, listing in listings.items()
        for chunk, count in sorted(listing.chunks.items())
    }
    ignored = sum(listing.ignored for listing in listings.values())
    return replace(manifest, parts=parts, listings=listings, ignored=ignored)


def _kept(output: Folder) -> tuple[Manifest | None, bool]:
    """Return what an earlier start left of the manifest, and whether it is as it was left."""
    try:
        return read_complete(output), True
    except DamagedFileError as error:
        work = output.names(DONE) or output.folders(FRAGMENTS)
        if not output.exists(COMPLETE) and not work:
            return None, True  # a listing that was cut short, or none at all
        _LOG.warning("%s; it is made again from the other files", error)
    places = [output.names(folder) for folder in output.folders() if folder != FRAGMENTS]
    stems = {name.partition(".")[0] for name in chain(output.folders(FRAGMENTS), *places)}
    names = sorted(name for name in stems if PART.fullmatch(name))
    return Manifest(dict.fromkeys(names, 0)), False


def _prepare_listed(
    output: Folder, source: Source, kept: Manifest | None, sound: bool, shard_size: int, relist: bool
) -> Manifest:
    if kept is None:
        output.remove_folder(FOLDER)
        parts = _write_parts(output, chain.from_iterable(distinct(source.records(), IdSet())), 0, shard_size)
        if not parts:
            raise StorageError(
                f"no image in {source.describe()['uri']} ({source.ignored} other files passed over); check the path"
            )
        return _complete(output, Manifest(parts, tuple(source.containers() or ()), ignored=source.ignored))
    known = _Known.load(output, kept, sound)
    containers = source.containers()
    missing = [name for name in containers or () if name not in set(kept.containers)]
    if containers is None or known.damaged or not sound or relist:
        new = known.unknown(chain.from_iterable(distinct(source.records(), IdSet())))
    elif missing:
        new = chain.from_iterable(distinct(_records_beside(source, kept.containers, known.ids), known.ids))
    else:
        new = iter(())
    first = 1 + max((int(match[1]) for match in map(PART.fullmatch, kept.parts) if match), default=-1)
    added = _write_parts(output, new, first, shard_size)
    known.rescue(output)
    merged = Manifest(
        {**known.parts, **added},
        (*kept.containers, *missing),
        ignored=source.ignored,
        appended=sum(added.values()),
        gone=sum(known.parts.values()) - known.found if containers is None else 0,
    )
    if not merged.parts:
        raise StorageError(f"no image in {source.describe()['uri']}; check the path")
    changed = added or missing or known.damaged or not sound
    return _complete(output, merged) if changed else replace(merged, ignored=source.ignored)


def _records_beside(source: Source, skip: tuple[str, ...], taken: IdSet) -> Iterator[ImageRecord]:
    """List new containers; a source whose ids may repeat makes them unique by its own rule."""
    options: dict[str, Any] = {"taken": taken.__contains__} if getattr(source, "id_column", None) else {}
    return source.records(skip=skip, **options)


def _write_parts(
    output: Folder, records: Iterable[ImageRecord], first: int, shard_size: int
) -> dict[str, int]:
    parts: dict[str, int] = {}
    rows: list[ImageRecord] = []
    for row in chain(records, [None]):
        if row is not None:
            rows.append(row)
        if rows and (row is None or len(rows) == shard_size):
            name = part_name(first + len(parts))
            write_part(output, name, rows)
            parts[name] = len(rows)
            rows = []
    return parts


def _complete(output: Folder, manifest: Manifest) -> Manifest:
    write_complete(output, manifest, stored_identity(output))
    return manifest


@dataclass
class _Known:
    """What the kept parts list, and the rows of those whose list is damaged."""

    ids: IdSet
    parts: dict[str, int]
    damaged: dict[str, dict[str, ImageRecord]]
    found: int = 0

    @classmethod
    def load(cls, output: Folder, kept: Manifest, sound: bool) -> "_Known":
        def digests(part: str) -> np.ndarray | None:
            try:
                ids = digests_of(read_part(output, part, ["image_id"])["image_id"].to_pylist())
            except DamagedFileError as error:
                _LOG.warning("%s; the part is listed again", error)
                return None
            if sound and len(ids) != kept.parts[part]:
                _LOG.warning("%s lists %d images instead of %d; it is listed again", *_sizes(part, ids, kept))
                return None
            return ids

        known = cls(IdSet(), {}, {})
        arrays = []
        with ThreadPoolExecutor(_THREADS) as threads:
            for part, found in zip(kept.parts, threads.map(digests, kept.parts), strict=True):
                if found is not None:
                    arrays.append(found)
                known.parts[part] = 0 if found is None else len(found)
        known.ids.add(np.concatenate([np.empty(0, "S16"), *arrays]))
        for part in [part for part, count in known.parts.items() if count == 0]:
            rows = stored_addresses(output, part)
            known.damaged[part] = {
                image_id: ImageRecord(image_id, uri, "broken", reason=_LOST)
                for image_id, uri in rows.items()
                if image_id not in known.ids
            }
            known.ids.add(digests_of(list(known.damaged[part])))
        return known

    def unknown(self, records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
        """Yield the records whose ids are new, and count the others."""
        lost = {image_id: part for part, rows in self.damaged.items() for image_id in rows}
        for rows in _batches(records):
            known = self.ids.holds(digests_of([row.image_id for row in rows]))
            self.found += int(known.sum())
            for row, old in zip(rows, known, strict=True):
                if not old:
                    yield row
                elif row.image_id in lost:
                    self.damaged[lost[row.image_id]][row.image_id] = row

    def rescue(self, output: Folder) -> None:
        """Write the damaged lists anew; a part that has no row at all is given up, its images are new ones."""
        for part, rows in self.damaged.items():
            del self.parts[part]
            if rows:
                write_part(output, part, list(rows.values()))
                self.parts[part] = len(rows)
            else:
                output.remove(f"{DONE}/{part}.json")
                output.remove(part_file(part))
        self.parts = dict(sorted(self.parts.items()))


def _batches(records: Iterable[ImageRecord]) -> Iterator[list[ImageRecord]]:
    rows: list[ImageRecord] = []
    for row in records:
        rows.append(row)
        if len(rows) == 4096:
            yield rows
            rows = []
    yield rows


def _sizes(part: str, ids: np.ndarray, kept: Manifest) -> tuple[str, int, int]:
    return part_file(part), len(ids), kept.parts[part]


def stored_addresses(output: Folder, part: str) -> dict[str, str]:
    """Return the addresses by id of all rows that a part has in finished files and fragments."""
    names = [f"{folder}/{part}.parquet" for folder in output.folders() if folder not in (FOLDER, FRAGMENTS)]
    names += [f"{FRAGMENTS}/{part}/{name}" for name in output.names(f"{FRAGMENTS}/{part}")]
    rows: dict[str, str] = {}
    for name in names:
        if not output.exists(name):
            continue
        try:
            table: pa.Table = read_table(output, name, columns=["image_id", "uri"])
            rows.update(zip(table["image_id"].to_pylist(), table["uri"].to_pylist(), strict=True))
        except DamagedFileError:
            continue
    return rows


def _prepare_shards(output: Folder, source: Source, kept: Manifest | None, sound: bool) -> Manifest:
    names = list(source.containers() or ())
    if kept is None:
        output.remove_folder(FOLDER)
        return _complete(output, Manifest({}, tuple(names), True, {}))
    if sound and not kept.streamed:
        raise OutputMismatchError(
            f"{output.public_uri} was begun by an older version, which listed shards before the work; give another "
            "--output, or --overwrite to replace it"
        )
    before = kept.containers if sound else _shard_names(output, source, kept, names)
    missing = [name for name in names if name not in set(before)]
    manifest = replace(kept, containers=(*before, *missing), streamed=True, parts={})
    if missing or not sound:
        _complete(output, manifest)
    return refresh_manifest(output, manifest)


def _shard_names(output: Folder, source: Source, kept: Manifest, names: list[str]) -> tuple[str, ...]:
    """Find out which number each shard has, from the listings and from the addresses of rows."""
    public = redact(source.uri)
    by_address = {join_uri(public, name): name for name in names}
    found: dict[int, str] = {}
    listed = [name.removeprefix("shard-") for name in output.names(FOLDER) if name.startswith("shard-")]
    for number in sorted(int(name.partition(".")[0]) for name in listed):
        try:
            found[number] = read_listing(output, number).shard
        except DamagedFileError:
            continue
    for part in kept.parts:
        shard = shard_of(part)
        if shard is not None and shard not in found:
            addresses = [*_listed_addresses(output, part), *stored_addresses(output, part).values()]
            known = [by_address[address] for address in addresses if address in by_address]
            if known:
                found[shard] = known[0]
    free = iter([name for name in names if name not in set(found.values())])
    numbers = range(max(found, default=-1) + 1)
    return tuple(found.get(n) or next(free, f"the shard that had number {n}") for n in numbers)


def _listed_addresses(output: Folder, part: str) -> Any:
    try:
        return read_part(output, part, ["uri"])["uri"].to_pylist()[:1]
    except DamagedFileError:
        return []
