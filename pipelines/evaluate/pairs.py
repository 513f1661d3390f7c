"""Images with reference masks: a benchmark below its root, or any two folders."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

from ovss_core.errors import StorageError
from ovss_core.evaluation.benchmarks import Benchmark, FoundSamples
from ovss_core.evaluation.benchmarks.conversions import LabelConversion, indices_below
from pipelines.sources import ImageRecord, open_images
from pipelines.sources.fetch import ImageFetcher
from pipelines.storage import Folder, join_uri, redact, walk


@dataclass(frozen=True)
class StorageTree:
    """A data set's folder on any storage."""

    folder: Folder

    @property
    def name(self) -> str:
        """The folder's address without credentials."""
        return self.folder.public_uri

    def files(self, folder: str) -> Iterable[str]:
        """List the files below a folder."""
        if not self.folder.exists(folder):
            return
        for path, _ in walk(self.folder.filesystem, f"{self.folder.path.rstrip('/')}/{folder}"):
            yield f"{folder}/{path}"

    def read_text(self, path: str) -> str | None:
        """Read a text file."""
        return self.folder.read(path).decode() if self.folder.exists(path) else None


class BenchmarkSource:
    """The images of a benchmark's validation split; each record's annotation is its mask below the root.

    Args:
        benchmark: Which one.
        root: Folder of the data set, or one of those above it that the benchmark documents; path or URI.
        limit: Take only so many images, evenly spread over the split.

    Attributes:
        conversion: Makes class indices of the masks' values.
        masks: Folder that annotations are relative to.

    Raises:
        StorageError: The root does not hold the benchmark.
    """

    def __init__(self, benchmark: Benchmark, root: str, limit: int | None = None) -> None:
        self.benchmark = benchmark
        self.root = root
        self.limit = limit
        self.ignored = 0
        self._found: FoundSamples = benchmark.find(StorageTree(Folder(root)))
        self.conversion: LabelConversion = self._found.layout.conversion
        self.masks = root

    @property
    def uri(self) -> str:
        """The root that opens the file system of the records' paths."""
        return self.root

    def describe(self) -> dict[str, Any]:
        """Return what identifies this source, without credentials."""
        return {
            "kind": "benchmark",
            "benchmark": self.benchmark.name,
            "uri": redact(self.root),
            "masks": self._found.layout.mask_suffix,
            "limit": self.limit,
        }

    def fetcher(self, max_bytes: int, timeout_s: float) -> ImageFetcher:
        """Return what fetches the bytes of its records."""
        return ImageFetcher(self.uri, max_bytes=max_bytes, timeout_s=timeout_s)

    def containers(self) -> None:
        """Return None: there are no shards."""

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        """List the images in the order of the split."""
        folder = Folder(self.root)
        base = folder.path.rstrip("/")
        for pair in spread(self._found.pairs, self.limit):
            uri = join_uri(folder.public_uri, pair.image)
            yield ImageRecord(pair.image, uri, "file", path=f"{base}/{pair.image}", annotation=pair.mask)


class FolderPairsSource:
    """Images of a folder and masks of the same names, ending in .png, in another.

    An image without a mask becomes a failure row.

    Args:
        images: Folder, glob, file or list, as for labelling.
        masks: Folder of index PNGs; 255 is ignored.
        classes: Number of classes of the vocabulary.

    Attributes:
        conversion: Makes class indices of the masks' values.
    """

    def __init__(self, images: str, masks: str, classes: int, limit: int | None = None) -> None:
        self._images = open_images(images)
        self.masks = masks
        self.limit = limit
        self.conversion: LabelConversion = indices_below(classes)
        self.ignored = 0
        if not Folder(masks).exists():
            raise StorageError(f"no such folder: {redact(masks)}; check --masks")

    @property
    def uri(self) -> str:
        """The root that opens the file system of the records' paths."""
        return self._images.uri

    def describe(self) -> dict[str, Any]:
        """Return what identifies this source, without credentials."""
        return {**self._images.describe(), "masks": redact(self.masks), "limit": self.limit}

    def fetcher(self, max_bytes: int, timeout_s: float) -> ImageFetcher:
        """Return what fetches the bytes of its records."""
        return self._images.fetcher(max_bytes, timeout_s)

    def containers(self) -> None:
        """Return None: there are no shards."""

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        """List the images, each with the name that its mask has."""
        records = self._images.records(skip)
        if self.limit is not None:
            records = iter(spread(list(records), self.limit))
        for record in records:
            yield replace(record, annotation=str(PurePosixPath(record.image_id).with_suffix(".png")))
        self.ignored = self._images.ignored


Item = TypeVar("Item")
PairSource = BenchmarkSource | FolderPairsSource


def spread(items: Collection[Item], limit: int | None) -> list[Item]:
    """Return at most `limit` items, evenly spread."""
    everything = list(items)
    if limit is None or limit >= len(everything):
        return everything
    return [everything[index * len(everything) // limit] for index in range(limit)]
