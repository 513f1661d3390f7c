"""Labels read back: as a table for Arrow, as a data set for torch, whichever version of ovss wrote them.

Files of the table ``labels/1`` have fewer columns: what follows from others is filled in, the rest is None.
"""

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ovss_core.errors import ConfigError, StorageError
from ovss_core.images.decode import decode_image
from ovss_core.results import ignore_index
from ovss_core.vocabulary import Vocabulary, VocabularyClass
from pipelines.faults import Failure
from pipelines.label.masks import decode_mask
from pipelines.label.table import CLASSES
from pipelines.run.manifest_files import PART
from pipelines.run.publish import is_published_name
from pipelines.run.record import read_identity
from pipelines.run.schema import IMAGE, LABELS, LOCATION
from pipelines.sources.fetch import ImageFetcher
from pipelines.storage import Folder, open_storage
from pipelines.transport.causes import one_line

_TABLE = "labels"
_VERSIONS = ("labels/1", "labels/2")
_MAX_BYTES, _MAX_PIXELS = 1 << 28, 100_000_000
_THREADS = 8
Transform = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class LabelFiles:
    """The labels of one output.

    Attributes:
        folder: The output.
        groups: Rows of each row group by file, files in order.
        version: The table's, such as "labels/2".
        schema: Columns of the first file.
        class_names: Names by value in the mask.
        image_column: Column of the images where they lie in Parquet files.
    """

    folder: Folder
    groups: Mapping[str, Sequence[int]]
    version: str
    schema: pa.Schema
    class_names: tuple[str, ...]
    image_column: str | None = None

    def __len__(self) -> int:
        return sum(map(sum, self.groups.values()))

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes, each standing for itself: labels do not tell the phrases."""
        return Vocabulary(tuple(VocabularyClass(name, (name,)) for name in self.class_names))

    @property
    def ignore_index(self) -> int:
        """The value of pixels without a label."""
        return ignore_index(len(self.class_names))

    @property
    def readable(self) -> tuple[str, ...]:
        """The columns that may be asked for: those of `LABELS`, and what else the files have."""
        return *LABELS.names, *_beside(self.schema)

    @property
    def arrow(self) -> ds.Dataset:
        """All rows as a data set of Arrow, with the columns that are stored."""
        base = self.folder.path.rstrip("/")
        paths = [f"{base}/{name}" for name in self.groups]
        return ds.dataset(paths, self.schema, format="parquet", filesystem=self.folder.filesystem)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield every row as plain values, row group by row group.

        Args:
            columns: Of `LABELS`; None for all.
        """
        for name, counts in self.groups.items():
            for group in range(len(counts)):
                yield from self.read_group(name, group, columns)

    def read_group(self, name: str, group: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return the rows of one row group, with columns that older files lack.

        Raises:
            StorageError: They cannot be read.
        """
        wanted = list(columns if columns is not None else self.readable)
        if unknown := [entry for entry in wanted if entry not in self.readable]:
            raise ConfigError(
                f"no column {unknown[0]!r} in {self.folder.public_uri}; it has {self.schema.names}"
            )
        needed = (
            {"present" if entry == "words" else entry for entry in wanted}
            if self.version == _VERSIONS[0]
            else wanted
        )
        stored = [entry for entry in self.schema.names if entry in needed]
        with opened_labels(self.folder, name) as file:
            rows = file.read_row_group(group, stored).to_pylist()
        return [{entry: _value(row, entry) for entry in wanted} for row in rows]

    def image_of(self, row: Mapping[str, Any]) -> bytes:
        """Return the bytes of a row's image: those in the row, or those where its columns say that they lie.

        Args:
            row: With `uri` and the columns `LOCATION`, or with `image`.

        Raises:
            StorageError: They cannot be had.
        """
        stored = row.get(IMAGE)
        if stored is not None:
            data: bytes = stored
            return data
        return fetch_image(row, self.image_column)

    def torch(
        self,
        columns: Sequence[str] = ("image_id", "mask"),
        images: bool = False,
        transform: Transform | None = None,
    ) -> "LabelDataset":
        """Return a data set of rows by number; see `LabelDataset`."""
        return LabelDataset(self, columns, images, transform)

    def stream(
        self,
        columns: Sequence[str] = ("image_id", "mask"),
        images: bool = False,
        transform: Transform | None = None,
        seed: int | None = None,
    ) -> "LabelStream":
        """Return a data set that is read from front to back; see `LabelStream`."""
        return LabelStream(self, columns, images, transform, seed)


@contextmanager
def opened_labels(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    """Open one file of labels.

    Raises:
        StorageError: It cannot be opened, or read inside the block.
    """
    try:
        with folder.open(name) as stream:
            yield pq.ParquetFile(stream)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot read {name} of {folder.public_uri}: {one_line(error)}") from error


def open_labels(uri: str) -> LabelFiles:
    """Open the labels of an output, finished or not.

    Args:
        uri: Folder of the output; local path or URI.

    Raises:
        StorageError: There are none, or they cannot be read.
    """
    folder = Folder(uri)
    names = [
        f"{_TABLE}/{name}"
        for name in folder.names(_TABLE)
        if is_published_name(_TABLE, name) or PART.fullmatch(name.removesuffix(".parquet"))
    ]

    def footer(name: str) -> tuple[list[int], pa.Schema]:
        with opened_labels(folder, name) as file:
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            return counts, file.schema_arrow

    with ThreadPoolExecutor(_THREADS) as threads:
        found = dict(zip(names, threads.map(footer, names), strict=True))
    if not found:
        inside = any(is_published_name(_TABLE, name) for name in folder.names())
        raise StorageError(
            f"no labels under {folder.public_uri}; give the folder {'above it' if inside else 'that was the --output of ovss label'}"
        )
    schema = next(iter(found.values()))[1]
    version = (schema.metadata or {}).get(b"ovss_schema", b"").decode()
    if version not in _VERSIONS:
        raise StorageError(
            f"{folder.public_uri} holds a table {version or 'of no version'!r}; this reads {', '.join(_VERSIONS)}"
        )
    identity = read_identity(folder)
    classes = json.loads(schema.metadata[CLASSES]) if CLASSES in schema.metadata else None
    if classes is None:
        classes = [entry["name"] for entry in identity.get("vocabulary") or ()]
    column = (identity.get("source") or {}).get("image_column")
    groups = {name: counts for name, (counts, _) in found.items()}
    return LabelFiles(folder, groups, version, schema, tuple(classes), column)


def _beside(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name not in LABELS.names]


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    if name == "words":
        return [entry["name"] for entry in row["present"]]
    return None


def fetch_image(row: Mapping[str, Any], image_column: str | None = None) -> bytes:
    """Return the bytes of an image from where a row of labels says that it lies.

    Raises:
        StorageError: They cannot be had.
    """
    uri, container = row["uri"], row.get("container")
    if container == "tar" and row["offset"] is None:
        return _member(uri, row["member"])
    place = {name: row.get(name) for name in LOCATION}
    place |= {
        "container": container or "file",
        "path": open_storage(uri)[1] if container else None,
        "reason": None,
    }
    with ThreadPoolExecutor(1) as pool:
        [found] = ImageFetcher(uri, image_column, _MAX_BYTES).fetch([place], pool)
    if isinstance(found, Failure):
        raise StorageError(f"no image for {row.get('image_id') or uri}: {found.reason}")
    return found


def _member(uri: str, member: str) -> bytes:
    """Read one file of a compressed tar, from its front."""
    filesystem, path = open_storage(uri)
    try:
        with (
            filesystem.open_input_stream(path, compression=None) as stream,
            tarfile.open(fileobj=stream, mode="r|*") as tar,
        ):
            for entry in tar:
                if entry.name == member and (file := tar.extractfile(entry)):
                    return file.read()
    except (OSError, tarfile.TarError, pa.ArrowException) as error:
        raise StorageError(f"cannot read {member} of {uri}: {one_line(error)}") from error
    raise StorageError(f"no {member} in {uri}")


@dataclass
class _Rows:
    """What both kinds of data sets make of a row.

    Attributes:
        columns: Columns of `LABELS` in a sample.
        images: Whether the decoded image comes along, as "pixels".
        transform: Called with each sample.
    """

    labels: LabelFiles
    columns: Sequence[str]
    images: bool
    transform: Transform | None

    def _stored(self) -> list[str]:
        located = [IMAGE, "uri", *LOCATION] if self.images else []
        return [*dict.fromkeys([*self.columns, *located])]

    def _sample(self, row: Mapping[str, Any]) -> Any:
        sample = {name: row[name] for name in self.columns}
        for name in ("mask", "confidence"):
            if sample.get(name) is not None:
                picture = decode_mask(sample[name])
                sample[name] = torch.from_numpy(picture.astype(np.int64 if name == "mask" else np.uint8))
        if self.images:
            pixels = decode_image(self.labels.image_of(row), _MAX_PIXELS)
            sample["pixels"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return self.transform(sample) if self.transform else sample


@dataclass
class LabelDataset(_Rows, Dataset[Any]):
    """Rows by number, for samplers that jump; neighbors are read together.

    A sample is a dictionary: the columns asked for, `mask` as int64 [height, width], `confidence` as uint8 [height, width],
    and with `images` the decoded image, uint8 [3, height, width], as `pixels`.
    """

    _read: tuple[str, int] | None = field(default=None, init=False, repr=False)
    _kept: list[dict[str, Any]] = field(default_factory=list, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def _places(self) -> tuple[list[tuple[str, int]], np.ndarray]:
        places = [
            (name, group) for name, counts in self.labels.groups.items() for group in range(len(counts))
        ]
        ends = np.cumsum([count for counts in self.labels.groups.values() for count in counts])
        return places, ends

    def __getitem__(self, number: int) -> Any:
        if not -len(self) <= number < len(self):
            raise IndexError(f"there are {len(self)} rows; no row {number}")
        number %= len(self)
        places, ends = self._places
        place = int(np.searchsorted(ends, number, side="right"))
        if self._read != places[place]:
            self._kept = self.labels.read_group(*places[place], self._stored())
            self._read = places[place]
        return self._sample(self._kept[number - int(ends[place]) + len(self._kept)])


@dataclass
class LabelStream(_Rows, IterableDataset[Any]):
    """Rows from front to back, row groups spread over the workers of a loader; samples as `LabelDataset` has them.

    Attributes:
        seed: Shuffle row groups and the rows within one, in the same way in every worker; None keeps the order.
    """

    seed: int | None = None

    def __iter__(self) -> Iterator[Any]:
        places = [
            (name, group) for name, counts in self.labels.groups.items() for group in range(len(counts))
        ]
        generator = None if self.seed is None else np.random.default_rng(self.seed)
        if generator is not None:
            places = [places[place] for place in generator.permutation(len(places))]
        worker = get_worker_info()
        for name, group in places[worker.id :: worker.num_workers] if worker else places:
            rows = self.labels.read_group(name, group, self._stored())
            order = range(len(rows)) if generator is None else generator.permutation(len(rows))
            for place in order:
                yield self._sample(rows[place])
