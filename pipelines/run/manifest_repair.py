"""What an earlier start listed, and how lists that are damaged are made again from what else is there.

A list is made again from the rows that its part has already, in the words of the source where it still has the
image; the part's other images are listed again as new ones.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.run.fragments import FRAGMENTS
from pipelines.run.id_set import IdSet, Listed, digests_of
from pipelines.run.manifest_files import (
    FOLDER,
    Manifest,
    digest_of_ids,
    digest_of_list,
    part_file,
    read_listing,
    read_part,
    shard_of,
    write_part,
)
from pipelines.run.publish import PARTS, read_part_rows, read_published
from pipelines.run.sink import DONE, FAILED
from pipelines.run.state_files import DamagedFileError, read_table
from pipelines.sources.record import ImageRecord, Source
from pipelines.storage import Folder, join_uri, redact

_LOG = logging.getLogger(__name__)
_THREADS = 8
_LISTS_TOGETHER = 256
_LOST = "the list that said where this image lies was damaged, and the source does not hold it any more"


@dataclass
class KnownImages:
    """What the kept parts list, and the rows of those whose list is damaged.

    Attributes:
        ids: All ids.
        parts: Images of each part whose list is sound.
        digests: The digests of these lists.
        damaged: Records by id of the parts whose list is to be made again.
        found: Images that the source has still.
    """

    ids: IdSet
    parts: dict[str, int]
    digests: dict[str, str]
    damaged: dict[str, dict[str, ImageRecord]]
    found: int = 0

    @classmethod
    def load(cls, output: Folder, kept: Manifest, sound: bool) -> "KnownImages":
        """Read all lists; those that are damaged become the rows that their parts have.

        Args:
            sound: The counts of `kept` are known.
        """

        def digests(part: str) -> np.ndarray | None:
            try:
                ids = digests_of(read_part(output, part, ["image_id"])["image_id"].to_pylist())
            except DamagedFileError as error:
                _LOG.warning("%s; the part is listed again", error)
                return None
            if sound and len(ids) != kept.parts[part]:
                _LOG.warning("%s lists %d images instead of %d; it is listed again", *_sizes(part, ids, kept))
                return None
            if kept.digests.get(part, written := digest_of_list(ids.tobytes())) != written:
                _LOG.warning(
                    "%s lists other images than were written there; it is listed again", part_file(part)
                )
                return None
            return ids

        known = cls(IdSet(), {}, {}, {})
        waiting: list[np.ndarray] = []
        with ThreadPoolExecutor(_THREADS) as threads:
            for part, found in zip(kept.parts, threads.map(digests, kept.parts), strict=True):
                if found is not None:
                    waiting.append(found)
                    known.digests[part] = digest_of_list(found.tobytes())
                known.parts[part] = 0 if found is None else len(found)
                if len(waiting) == _LISTS_TOGETHER:
                    known.ids.add(np.concatenate(waiting))
                    waiting.clear()
        known.ids.add(np.concatenate([np.empty(0, "S16"), *waiting]))
        for part in [part for part, count in known.parts.items() if count == 0]:
            rows = stored_addresses(output, part)
            known.damaged[part] = {
                image_id: ImageRecord(image_id, uri, "broken", reason=_LOST)
                for image_id, uri in rows.items()
                if image_id not in known.ids
            }
            known.ids.add(digests_of(list(known.damaged[part])))
        return known

    def unknown(self, listed: Iterable[Listed]) -> Iterator[Listed]:
        """Yield the records whose ids are new, and count the others."""
        lost = {image_id: part for part, rows in self.damaged.items() for image_id in rows}
        for some in listed:
            known = self.ids.holds(some.digests)
            self.found += int(known.sum())
            if lost:
                for row in some.where(known).records:
                    if row.image_id in lost:
                        self.damaged[lost[row.image_id]][row.image_id] = row
            yield some.where(~known)

    def rescue(self, output: Folder) -> None:
        """Write the damaged lists anew; a part that has no row at all is given up, its images are new ones."""
        for part, rows in self.damaged.items():
            del self.parts[part]
            if rows:
                write_part(output, part, list(rows.values()))
                self.digests[part] = digest_of_ids(rows)
                self.parts[part] = len(rows)
            else:
                output.remove(f"{DONE}/{part}.json")
                output.remove(part_file(part))
        self.parts = dict(sorted(self.parts.items()))


def _sizes(part: str, ids: np.ndarray, kept: Manifest) -> tuple[str, int, int]:
    return part_file(part), len(ids), kept.parts[part]


def stored_addresses(output: Folder, part: str) -> dict[str, str]:
    """Return the addresses by id of all rows that a part has in finished files and fragments."""
    names = [f"{folder}/{part}.pq" for folder in (PARTS, FAILED)]
    names += [f"{FRAGMENTS}/{part}/{name}" for name in output.names(f"{FRAGMENTS}/{part}")]
    columns = ["image_id", "uri"]
    rows: dict[str, str] = {}

    def take(read: Callable[[], pa.Table]) -> None:
        with suppress(DamagedFileError):
            table = read()
            rows.update(zip(table["image_id"].to_pylist(), table["uri"].to_pylist(), strict=True))

    for name in names:
        if output.exists(name):
            take(partial(read_table, output, name, columns=columns))
    for folder in output.folders():
        published = read_published(output, folder)
        if part in published.places:
            take(partial(read_part_rows, output, part, published, columns))
    return rows


def shard_names(output: Folder, source: Source, kept: Manifest, names: list[str]) -> tuple[str, ...]:
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
