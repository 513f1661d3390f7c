"""The list of images of a run, written once: numbered Parquet parts, and a file that says they are complete.

A part is the unit of everything that follows: one output file, one completion marker. A run that starts again
reads the parts instead of listing the source anew; images that came to the source since are appended as new
parts, so that no finished part ever changes.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ovss_core.errors import StorageError
from pipelines.sources.record import MANIFEST_SCHEMA, ImageRecord, Source
from pipelines.storage import Folder

FOLDER = "manifest"
COMPLETE = f"{FOLDER}/complete.json"
_COLUMNS = [entry.name for entry in fields(ImageRecord)]


@dataclass(frozen=True)
class Manifest:
    """What `complete.json` says.

    Attributes:
        counts: Images of each part; part n is ``manifest/part-{n:05d}.parquet``.
        containers: Shards that have been listed (empty for plain files).
        ignored: Files that were passed over because they are no images.
        appended: Images that the last listing added to an existing manifest.
        gone: Images of the manifest that the last listing did not find again (plain files only).
    """

    counts: tuple[int, ...]
    containers: tuple[str, ...] = ()
    ignored: int = 0
    appended: int = 0
    gone: int = 0

    @property
    def images(self) -> int:
        """Images of all parts."""
        return sum(self.counts)


def part_name(part: int) -> str:
    """Return the file name that a part has in every folder of an output, without its ending."""
    return f"part-{part:05d}"


def prepare_manifest(output: Folder, source: Source, shard_size: int) -> Manifest:
    """Write the manifest of a new output, or bring that of an existing one up to date.

    Args:
        shard_size: Images of a part, and so of an output file; at least 1.

    Raises:
        StorageError: The source holds no image.
    """
    if not output.exists(COMPLETE):
        manifest = _write_parts(output, source.records(), 0, shard_size)
        if not manifest:
            raise StorageError(
                f"no image in {source.describe()['uri']} ({source.ignored} other files passed over); check the path"
            )
        return _complete(output, Manifest(tuple(manifest), tuple(source.containers() or ()), source.ignored))
    return _append_new(output, source, read_manifest(output), shard_size)


def read_manifest(output: Folder) -> Manifest:
    """Read the totals of a complete manifest."""
    values = json.loads(output.read(COMPLETE))
    return Manifest(tuple(values["counts"]), tuple(values["containers"]), values["ignored"])


def read_part(output: Folder, part: int, columns: list[str] | None = None) -> pa.Table:
    """Read one part; columns as in `MANIFEST_SCHEMA`."""
    data = output.read(f"{FOLDER}/{part_name(part)}.parquet")
    return pq.read_table(pa.BufferReader(data), columns=columns)


def _append_new(output: Folder, source: Source, manifest: Manifest, shard_size: int) -> Manifest:
    containers, listed = source.containers(), manifest.containers
    if containers is None:
        known = _IdSet(output, len(manifest.counts))
        new: Iterable[ImageRecord] = known.unknown(source.records())
        counts = _write_parts(output, new, len(manifest.counts), shard_size)
        gone = manifest.images - known.found
    else:
        missing = [name for name in containers if name not in set(manifest.containers)]
        new = source.records(skip=manifest.containers) if missing else ()
        counts = _write_parts(output, new, len(manifest.counts), shard_size)
        gone, listed = 0, (*manifest.containers, *missing)
    merged = Manifest((*manifest.counts, *counts), listed, source.ignored, sum(counts), gone)
    return _complete(output, merged) if counts or listed != manifest.containers else merged


def _write_parts(output: Folder, records: Iterable[ImageRecord], first: int, shard_size: int) -> list[int]:
    counts: list[int] = []
    remaining = iter(records)
    while rows := list(islice(remaining, shard_size)):
        columns = {name: [getattr(row, name) for row in rows] for name in _COLUMNS}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), sink, compression="zstd")
        name = f"{FOLDER}/{part_name(first + len(counts))}.parquet"
        output.write(name, sink.getvalue().to_pybytes())
        counts.append(len(rows))
    return counts


def _complete(output: Folder, manifest: Manifest) -> Manifest:
    values: dict[str, Any] = {
        "images": manifest.images,
        "counts": list(manifest.counts),
        "containers": list(manifest.containers),
        "ignored": manifest.ignored,
    }
    output.write(COMPLETE, json.dumps(values).encode())
    return manifest


class _IdSet:
    """The ids of a manifest as sorted 16-byte digests: 16 bytes an image, however long the ids are."""

    def __init__(self, output: Folder, parts: int) -> None:
        with ThreadPoolExecutor(8) as threads:
            ids = threads.map(lambda part: _digests(read_part(output, part, ["image_id"])), range(parts))
            self._known = np.sort(np.concatenate([np.empty(0, "S16"), *ids]))
        self.found = 0

    def unknown(self, records: Iterator[ImageRecord]) -> Iterator[ImageRecord]:
        """Yield the records whose ids are new, and count the others."""
        while rows := list(islice(records, 4096)):
            digests = np.array([_digest(row.image_id) for row in rows], "S16")
            places = np.minimum(np.searchsorted(self._known, digests), len(self._known) - 1)
            known = self._known[places] == digests
            self.found += int(known.sum())
            yield from (row for row, old in zip(rows, known, strict=True) if not old)


def _digests(table: pa.Table) -> np.ndarray:
    return np.array([_digest(image_id) for image_id in table["image_id"].to_pylist()], "S16")


def _digest(image_id: str) -> bytes:
    return blake2b(image_id.encode(), digest_size=16).digest()
