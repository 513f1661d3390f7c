"""The list of images of a run: made once, kept, and brought up to date when the run comes back.

Plain files and tables are listed here. Shards are only named here: whoever streams one lists it (`pipelines.run.shards`),
so that its bytes are read once. A run that comes back reads what is listed instead of listing anew; images and
shards that came to the source since are appended as new parts, so that no finished part ever changes.
"""

import gc
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from ovss_core.errors import OutputMismatchError, StorageError
from pipelines.run.fragments import FRAGMENTS
from pipelines.run.id_set import IdSet, Listed, distinct, in_parts
from pipelines.run.manifest_files import (
    COMPLETE,
    FOLDER,
    PART,
    Manifest,
    ShardListing,
    digest_of_ids,
    digest_of_list,
    part_file,
    part_name,
    read_complete,
    read_listing,
    read_part,
    shard_file,
    write_complete,
    write_part,
)
from pipelines.run.manifest_repair import KnownImages, shard_names
from pipelines.run.publish import read_published
from pipelines.run.record import stored_identity
from pipelines.run.sink import DONE
from pipelines.run.state_files import DamagedFileError
from pipelines.sources.record import ImageRecord, Source
from pipelines.storage import Folder
from pipelines.transport.stores import is_object_store

__all__ = ["Manifest", "prepare_manifest", "read_manifest", "read_part", "refresh_manifest"]
_LOG = logging.getLogger(__name__)
_THREADS, _THREADS_OF_A_DISK = 8, 2
"""A disk answers at once: more threads that encode lists only take Python's lock from the one that lists."""
_WRITES_AT_ONCE = 32


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


def is_read_whole(source: Source) -> bool:
    """Say whether a read task takes what lies together, a shard or a row group, however many images that are."""
    return is_streamed(source) or source.describe().get("kind") == "parquet"


def is_partial(source: Source) -> bool:
    """Say whether only a part of a source is to be listed (`pipelines.run.selection`)."""
    return bool(getattr(source, "is_partial", False))


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
    held = [read_published(output, folder).places for folder in output.folders()]
    stems = {name.partition(".")[0] for name in chain(output.folders(FRAGMENTS), *places, *held)}
    names = sorted(name for name in stems if PART.fullmatch(name))
    return Manifest(dict.fromkeys(names, 0)), False


def _prepare_listed(
    output: Folder, source: Source, kept: Manifest | None, sound: bool, shard_size: int, relist: bool
) -> Manifest:
    if kept is None:
        output.remove_folder(FOLDER)
        parts, digests = _write_parts(output, distinct(source.records(), IdSet()), 0, shard_size)
        if not parts:
            raise StorageError(
                f"no image in {source.describe()['uri']} ({source.ignored} other files passed over); check the path"
            )
        tables = tuple(source.containers() or ())
        manifest = Manifest(
            parts,
            tables,
            ignored=source.ignored,
            digests=digests,
            partial=is_partial(source),
            fresh=source.containers() is None,
        )
        return _complete(output, manifest)
    if is_partial(source) and sound and not kept.partial:
        raise OutputMismatchError(
            f"{output.public_uri} lists the whole corpus already; leave --limit and --sample out, or give another --output"
        )
    relist = relist or kept.partial
    if sound and not relist and _lists_the_same(output, source, kept):
        return replace(kept, ignored=source.ignored, appended=0, gone=0)
    known = KnownImages.load(output, kept, sound)
    containers = source.containers()
    if is_partial(source) and (known.damaged or not sound):  # what is lost is looked for in the whole
        whole: Source = source.whole  # type: ignore[attr-defined]
        deque(known.unknown(distinct(whole.records(), IdSet())), maxlen=0)
    missing = [name for name in containers or () if name not in set(kept.containers)]
    if containers is None or known.damaged or not sound or relist:
        new = known.unknown(distinct(source.records(), IdSet()))
    elif missing:
        new = distinct(_records_beside(source, kept.containers, known.ids), known.ids)
    else:
        new = iter(())
    first = 1 + max((int(match[1]) for match in map(PART.fullmatch, kept.parts) if match), default=-1)
    added, digests = _write_parts(output, new, first, shard_size)
    known.rescue(output)
    merged = Manifest(
        {**known.parts, **added},
        (*kept.containers, *missing),
        ignored=source.ignored,
        appended=sum(added.values()),
        gone=sum(known.parts.values()) - known.found
        if containers is None and not is_partial(source)
        else None,
        digests={**known.digests, **digests},
        partial=is_partial(source),
    )
    if not merged.parts:
        raise StorageError(f"no image in {source.describe()['uri']}; check the path")
    _remove_unlisted(output, merged)
    changed = added or missing or known.damaged or not sound or merged.partial != kept.partial
    return _complete(output, merged) if changed else replace(merged, ignored=source.ignored)


def _remove_unlisted(output: Folder, manifest: Manifest) -> None:
    """Remove the lists of a start that was killed before it named them: a manifest made again from lists would count them."""
    named = {f"{part}.pq" for part in manifest.parts}
    for name in output.names(FOLDER):
        if name.endswith(".pq") and PART.fullmatch(name.removesuffix(".pq")) and name not in named:
            output.remove(f"{FOLDER}/{name}")


def _lists_the_same(output: Folder, source: Source, kept: Manifest) -> bool:
    """Say whether a source of plain files lists what it did, in the same order; no list is read for that.

    Where it does not, or where lists are gone, all of them have to be read.
    """
    if source.containers() is not None or is_partial(source) or not kept.digests.keys() >= kept.parts.keys():
        return False
    there = set(output.names(FOLDER))
    if not all(part_file(part).rpartition("/")[2] in there for part in kept.parts):
        return False
    remaining = (record.image_id for record in source.records())
    for part, images in kept.parts.items():
        ids = list(islice(remaining, images))
        if digest_of_ids(ids) != kept.digests[part]:
            return False
    return next(remaining, None) is None


def _records_beside(source: Source, skip: tuple[str, ...], taken: IdSet) -> Iterator[ImageRecord]:
    """List new containers; a source whose ids may repeat makes them unique by its own rule."""
    options: dict[str, Any] = {"taken": taken.__contains__} if getattr(source, "id_column", None) else {}
    return source.records(skip=skip, **options)


def _write_parts(
    output: Folder, listed: Iterable[Listed], first: int, shard_size: int
) -> tuple[dict[str, int], dict[str, str]]:
    """Write lists from number `first` on; return the images of each part, and the digest of its list."""
    parts: dict[str, int] = {}
    digests: dict[str, str] = {}
    under_way: deque[Future[None]] = deque()
    # a disk's sync, or a store's answer, is waited for beside the listing
    count = _THREADS if is_object_store(output.filesystem) else _THREADS_OF_A_DISK
    with _little_garbage(), ThreadPoolExecutor(count) as threads:
        for part in in_parts(listed, shard_size):
            name = part_name(first + len(parts))
            parts[name], digests[name] = len(part.records), digest_of_list(part.digests.tobytes())
            under_way.append(threads.submit(write_part, output, name, part.records))
            if len(under_way) > _WRITES_AT_ONCE:
                under_way.popleft().result()
        for written in under_way:
            written.result()
    return parts, digests


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Let the collector pass over what was there before: it looks at all of it again for every few hundred thousand records."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _complete(output: Folder, manifest: Manifest) -> Manifest:
    write_complete(output, manifest, stored_identity(output))
    return manifest


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
    before = kept.containers if sound else shard_names(output, source, kept, names)
    missing = [name for name in names if name not in set(before)]
    manifest = replace(
        kept,
        containers=(*before, *missing),
        streamed=True,
        parts={},
        appended=len(missing),
        gone=len(set(before) - set(names)),
    )
    if missing or not sound:
        _complete(output, manifest)
    return refresh_manifest(output, manifest)
