"""Labels read back: as a table for Arrow, as a data set for torch, whichever version of ovss wrote them.

Files of the table ``labels/1`` have fewer columns: what follows from others is filled in, the rest is None.

Where images brought words along, each row has its own vocabulary. A trainer or an annotation tool wants one list of
classes: so rows are brought to one when they are read. It has the common vocabulary's classes, and behind them, by name,
the other words that are in some mask. The files stay as they are.
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
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ovss_core.errors import ConfigError, StorageError
from ovss_core.images.decode import decode_image
from ovss_core.results import ignore_index
from ovss_core.vocabulary import MAX_CLASSES, Vocabulary, VocabularyClass
from pipelines.faults import Failure
from pipelines.label.masks import decode_mask, encode_mask
from pipelines.label.table import CLASSES, COMMON, VOCABULARY
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
_INDEXING = ("mask", "present", "kept", "removed", "groups", "regions")
"""Columns that name classes by their index."""
Transform = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class LabelFiles:
    """The labels of one output.

    Attributes:
        folder: The output.
        groups: Rows of each row group by file, files in order.
        version: The table's, such as "labels/2".
        schema: Columns of the first file.
        class_names: Names by value in the masks that are read.
        image_column: Column of the images where they lie in Parquet files.
    """

    folder: Folder
    groups: Mapping[str, Sequence[int]]
    version: str
    schema: pa.Schema
    class_names: tuple[str, ...]
    image_column: str | None = None

    @property
    def by_row(self) -> bool:
        """Whether each row has its own vocabulary, so that what is read is brought to one list of classes."""
        return VOCABULARY in self.schema.names

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
        """All rows as a data set of Arrow, as they are stored: where rows have vocabularies, masks have the row's values."""
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
        translated = self.by_row and not {*_INDEXING}.isdisjoint(needed)
        if translated:
            needed = {*needed, VOCABULARY}
        stored = [entry for entry in self.schema.names if entry in needed]
        with opened_labels(self.folder, name) as file:
            rows = file.read_row_group(group, stored).to_pylist()
        if translated:
            rows = [self.translated(row) for row in rows]
        return [{entry: _value(row, entry) for entry in wanted} for row in rows]

    def translated(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Bring a stored row from its own vocabulary to `class_names`; without one it stays as it is.

        A word that is in no mask has no place there: its index is None.

        Raises:
            StorageError: Its mask has a word that is not among the names, for it was written since they were read.
        """
        if row.get(VOCABULARY) is None:
            return dict(row)
        place = [self._places.get(name) for name in row[VOCABULARY]]
        found = dict(row)
        if row.get("mask") is not None:
            mask = decode_mask(row["mask"])
            found["mask"] = encode_mask(self._translate(mask, place, row))
        for name in ("present", "kept", "removed"):
            if row.get(name) is not None:
                found[name] = [entry | {"index": place[entry["index"]]} for entry in row[name]]
        if row.get("groups") is not None:
            found["groups"] = [_moved(group, place) for group in row["groups"]]
        if row.get("regions") is not None:
            found["regions"] = [
                entry | {"winner": _placed(entry["winner"], place)} for entry in row["regions"]
            ]
        return found

    def _translate(self, mask: np.ndarray, place: Sequence[int | None], row: Mapping[str, Any]) -> np.ndarray:
        kind = np.uint8 if self.ignore_index == 255 else np.uint16
        values = np.full(np.iinfo(mask.dtype).max + 1, self.ignore_index, kind)
        for index in np.unique(mask).tolist():
            if index < len(place):
                new = place[index]
                if new is None:
                    raise StorageError(
                        f"{self.folder.public_uri} has a word {row[VOCABULARY][index]!r} that it had not when it was "
                        "opened; open it again"
                    )
                values[index] = new
        moved: np.ndarray = values[mask]
        return moved

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.class_names)}

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


def open_labels(uri: str, class_names: Sequence[str] | None = None) -> LabelFiles:
    """Open the labels of an output, finished or not.

    Args:
        uri: Folder of the output; local path or URI.
        class_names: Where each row has its own vocabulary: the list of classes that rows are brought to, as an earlier
            call found it. None reads which words there are, from all rows.

    Raises:
        StorageError: There are none, or they cannot be read; or they have more words than a mask has values.
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
    if VOCABULARY in schema.names:
        common = json.loads(schema.metadata.get(COMMON, b"[]"))
        classes = list(class_names) if class_names is not None else _all_words(folder, list(found), common)
    if classes is None:
        classes = [entry["name"] for entry in identity.get("vocabulary") or ()]
    column = (identity.get("source") or {}).get("image_column")
    groups = {name: counts for name, (counts, _) in found.items()}
    return LabelFiles(folder, groups, version, schema, tuple(classes), column)


def _all_words(folder: Folder, names: Sequence[str], common: Sequence[str]) -> list[str]:
    """Return the common classes, and behind them, by name, all other words that are in some mask."""

    def words_of(name: str) -> list[str]:
        with opened_labels(folder, name) as file:
            found: list[str] = pc.unique(pc.list_flatten(file.read(["words"])["words"])).to_pylist()
            return found

    with ThreadPoolExecutor(_THREADS) as threads:
        found = set().union(*threads.map(words_of, names))
    listed = [*common, *sorted(found.difference(common))]
    if len(listed) > MAX_CLASSES:
        raise StorageError(
            f"the masks of {folder.public_uri} have {len(listed):,} words, and one list of classes holds {MAX_CLASSES:,}; "
            "read the files by their columns mask and vocabulary"
        )
    return listed


def _placed(index: int | None, place: Sequence[int | None]) -> int | None:
    """Return where a class stands now; what is behind all classes is no class."""
    return place[index] if index is not None and index < len(place) else None


def _moved(group: Mapping[str, Any], place: Sequence[int | None]) -> dict[str, Any]:
    boxes = [box | {"winner": _placed(box["winner"], place)} for box in group["boxes"]]
    return {"classes": [place[index] for index in group["classes"]], "boxes": boxes}


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
