"""What is to be done now: which parts only wait to be merged, and what the read tasks take at a time.

Everything is decided by the files of the output; the plan of a run that comes back and that of a later round of the
same run are made alike.
"""

import logging
import math
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.run.fragments import FRAGMENTS, finished_ids
from pipelines.run.manifest_files import (
    Manifest,
    digest,
    digest_of_ids,
    part_file,
    part_name,
    read_part,
    shard_file,
    shard_of,
)
from pipelines.run.publish import Published, read_published
from pipelines.run.shards import shard_bytes
from pipelines.run.side_by_side import in_order
from pipelines.run.sink import DONE, OutputTable, reopen_parts
from pipelines.run.state_files import DamagedFileError
from pipelines.run.verify import check_part
from pipelines.run.work_units import ShardTask, Slice, Unit
from pipelines.sources import Source
from pipelines.storage import Folder

_LOG = logging.getLogger(__name__)
_THREADS = 8
UNIT_ROWS = 64
_TABLE_ROWS = 256
_SLICES_PER_ACTOR = 16


@dataclass
class Plan:
    """The work that is left.

    Attributes:
        missing: Images of each unfinished part that have no row yet; 0 where the rows only wait to be merged.
        units: What the read tasks take.
        stored: Rows that unfinished parts of shards which are still to be listed have already.
        unlisted: Shards that are still to be listed.
    """

    missing: dict[str, int] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    stored: dict[str, int] = field(default_factory=dict)
    unlisted: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether everything is done."""
        return not self.missing and not self.unlisted

    @property
    def state(self) -> tuple[int, int, int, int]:
        """What changes from round to round as long as work is done."""
        return len(self.missing), sum(self.missing.values()), len(self.unlisted), sum(self.stored.values())


@dataclass(frozen=True)
class _Part:
    """One unfinished part: which of its images have rows (None: none has), and what decides how it may be cut.

    `groups` is None where every image is a file of its own.
    """

    name: str
    images: int
    finished: np.ndarray | None
    groups: list[tuple[str, int] | None] | None
    by_range: bool = True

    @property
    def missing(self) -> int:
        """Images without a row."""
        return self.images if self.finished is None else int((~self.finished).sum())

    def holds(self, start: int, stop: int) -> bool:
        """Say whether some images have no row yet."""
        return self.finished is None or not self.finished[start:stop].all()

    def slice(self, start: int, stop: int) -> Slice:
        """Return some images as a unit's part."""
        finished = None if self.finished is None else self.finished[start:stop]
        return Slice.pack(self.name, start, stop, finished)


def unfinished_parts(output: Folder, manifest: Manifest) -> list[str]:
    """Return the parts that have no marker."""
    done = set(output.names(DONE))
    return [part for part in manifest.parts if f"{part}.json" not in done]


def plan_work(
    output: Folder,
    source: Source,
    manifest: Manifest,
    table: OutputTable,
    actors: int,
    batch: int,
    most: int = UNIT_ROWS,
) -> Plan:
    """Find out what is left.

    Args:
        actors: Workers of the largest pool; every one should get several units.
        batch: Images of one call; a unit holds as many at least.
        most: Images of a unit where there are many.

    Raises:
        DamagedFileError: A part's list was damaged since the run began.
    """
    parts, again = _read_parts(output, manifest, unfinished_parts(output, manifest))
    again |= _changed_shards(source, manifest, parts)
    for number in again:  # from here on it counts as not listed, whatever moment the run is killed at
        output.remove(shard_file(number))
    unlisted = tuple(sorted({*manifest.unlisted, *again}))
    listed = [part for part in parts if shard_of(part.name) not in again]
    plan = Plan({part.name: part.missing for part in listed}, unlisted=unlisted)
    rows = rows_of_unit(sum(plan.missing.values()), actors, batch, most)
    plan.units.extend(_slices(listed, rows))
    for task, stored in _shard_tasks(output, manifest, unlisted, table):
        plan.units.append(task)
        plan.stored.update(stored)
    return plan


def rows_of_unit(images: int, actors: int, batch: int, most: int = UNIT_ROWS) -> int:
    """Return how many images a read task takes of so many; arguments as for `plan_work`."""
    return max(batch, min(most, math.ceil(images / (_SLICES_PER_ACTOR * actors))))


def _read_parts(output: Folder, manifest: Manifest, names: Sequence[str]) -> tuple[list[_Part], set[int]]:
    started = set(output.folders(FRAGMENTS))

    def read(name: str) -> _Part | None:
        if manifest.fresh and name not in started:
            return _Part(name, manifest.parts[name], None, None)
        try:
            rows = read_part(output, name, ["image_id", "container", "path", "offset", "row_group"])
            _check_list(output, manifest, name, rows)
        except DamagedFileError as error:
            if shard_of(name) is None:
                raise
            _LOG.warning("%s; the shard is listed again", error)
            return None
        stored = finished_ids(output, name) if name in started else set()
        finished = _which(rows, stored) if stored else None
        kinds = rows["container"].to_pylist()
        if not {"parquet", "tar"}.intersection(kinds):
            return _Part(name, rows.num_rows, finished, None)
        groups = [
            (path, group) if kind == "parquet" else None
            for kind, path, group in zip(
                kinds, rows["path"].to_pylist(), rows["row_group"].to_pylist(), strict=True
            )
        ]
        lies = [
            kind != "tar" or offset is not None
            for kind, offset in zip(kinds, rows["offset"].to_pylist(), strict=True)
        ]
        by_range = np.array(lies, bool) if finished is None else np.array(lies, bool) | finished
        return _Part(name, rows.num_rows, finished, groups, bool(by_range.all()))

    found = list(zip(names, in_order(read, names, _THREADS), strict=True))
    damaged = {shard_of(name) for name, part in found if part is None}
    return [part for _, part in found if part], {number for number in damaged if number is not None}


def _which(rows: pa.Table, stored: Collection[str]) -> np.ndarray:
    """Return which rows are stored, bool."""
    return np.fromiter((image_id in stored for image_id in rows["image_id"].to_pylist()), bool, rows.num_rows)


def _check_list(output: Folder, manifest: Manifest, part: str, rows: pa.Table) -> None:
    """Compare a list with what was written there.

    Raises:
        DamagedFileError: It lists other images.
    """
    written = manifest.digests.get(part)
    if written is None and rows.num_rows == manifest.parts[part]:
        return
    if written != digest_of_ids(rows["image_id"].to_pylist()):
        raise DamagedFileError(output, part_file(part), "it lists other images than were written there")


def _changed_shards(source: Source, manifest: Manifest, parts: Sequence[_Part]) -> set[int]:
    """Return the shards whose images cannot be fetched where their lists say: no byte ranges, or another file now."""
    again: set[int] = set()
    sizes: dict[int, bool] = {}
    for part in parts:
        number = shard_of(part.name)
        if number is None or not manifest.listings or not part.missing:
            continue
        if number not in sizes:
            size, listing = shard_bytes(source.uri, manifest.containers[number]), manifest.listings[number]
            sizes[number] = size is not None and listing.bytes is not None and size != listing.bytes
        if sizes[number] or not part.by_range:
            again.add(number)
    return again


def _slices(parts: Sequence[_Part], rows: int) -> Iterator[Sequence[Slice]]:
    """Cut parts into units: `rows` images each, but a row group of a table is read once, by one task."""
    together: list[Slice] = []
    size = 0
    last: tuple[str, int] | None = None
    for part in parts:
        runs = [(0, part.images, None)] if part.groups is None else _runs(part.groups)
        for start, stop, group in runs:
            full = size >= rows if group is None else size >= max(rows, min(_TABLE_ROWS, 4 * rows))
            if together and full and (group is None or group != last):
                yield together
                together, size = [], 0
            last = group
            while start < stop:
                end = stop if group is not None else min(stop, start + rows - size)
                if part.holds(start, end):
                    together.append(part.slice(start, end))
                    size += end - start
                start = end
                if group is None and size >= rows:
                    yield together
                    together, size = [], 0
    if together:
        yield together


def _runs(
    groups: Sequence[tuple[str, int] | None],
) -> Iterator[tuple[int, int, tuple[str, int] | None]]:
    start = 0
    for place in range(1, len(groups) + 1):
        if place == len(groups) or groups[place] != groups[start]:
            yield start, place, groups[start]
            start = place


def _shard_tasks(
    output: Folder, manifest: Manifest, shards: Sequence[int], table: OutputTable
) -> Iterator[tuple[ShardTask, dict[str, int]]]:
    done, begun = _chunks(output.names(DONE), ".json"), _chunks(output.folders(FRAGMENTS), "")
    published = read_published(output, table.name) if shards else Published()
    taking_back = threading.Lock()

    def task(number: int) -> tuple[ShardTask, dict[str, int]]:
        finished, images = [], {}
        open_chunks = set(begun[number])
        for chunk in done[number]:
            part = part_name(number, chunk)
            try:
                images[chunk] = check_part(output, part, table.name, published)
                finished += read_part(output, part, ["image_id"])["image_id"].to_pylist()
            except DamagedFileError as error:
                _LOG.warning("%s; the part is done again as far as its files do not hold it", error)
                images.pop(chunk, None)
                with taking_back:  # two parts may lie in one published file
                    reopen_parts(output, [part], table, keep_failures=True)
                open_chunks.add(chunk)
        stored = {}
        for chunk in sorted(open_chunks - images.keys()):
            ids = finished_ids(output, part_name(number, chunk))
            stored[part_name(number, chunk)] = len(ids)
            finished += ids
        digests = b"".join(digest(image_id) for image_id in finished)
        return ShardTask(number, manifest.containers[number], digests, images), stored

    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(task, shards)


def _chunks(names: Sequence[str], ending: str) -> Mapping[int, list[int]]:
    """Return the chunks of each shard among names of parts."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for name in names:
        part = name.removesuffix(ending)
        number = shard_of(part)
        if number is not None:
            found[number].append(int(part.rpartition("-")[2]))
    return found
