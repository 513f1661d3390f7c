"""A shard read once, from front to back: its images' bytes for the stages, and its lists for the manifest.

The lists of a chunk are written before its last image is handed on, and with that image goes how many the chunk has;
so whoever counts what is finished may merge the chunk as soon as it is complete. What is wrong with the shard as
a whole becomes its last row, a failure with the shard's name; the images before it stay.
"""

import json
import logging
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa

from pipelines.faults import MAX_DEATHS, Attempts, Failure, clean_reason
from pipelines.run.id_set import IdSet
from pipelines.run.manifest_files import ShardListing, part_name, read_part, write_listing, write_part
from pipelines.run.schema import CARRIER, WORDS_CARRIER
from pipelines.run.state_files import DamagedFileError
from pipelines.run.work_units import ShardTask
from pipelines.sources.carried import read_beside
from pipelines.sources.image_words import ImageWords, Texts
from pipelines.sources.record import ImageRecord
from pipelines.sources.tar_stream import ImageFields, TarEnd, TarImage, stream_tar
from pipelines.storage import Folder, join_uri, open_storage, redact
from pipelines.transport.causes import TransferError
from pipelines.transport.patient_stream import open_patiently

_LOG = logging.getLogger(__name__)
_ROWS, _BYTES = 16, 1 << 24
_STAGE = "read"
_WINDOW = 16
Item = TypeVar("Item")
Content = tuple[bytes, Texts] | Failure
"""An image with its words, or why there is none."""


@dataclass
class _Chunk:
    """The images of one part so far; the last one to be read is held back until it is known how many there are."""

    number: int
    records: list[ImageRecord] = field(default_factory=list)
    held: tuple[ImageRecord, Content] | None = None


class ShardReader:
    """Streams shards.

    Args:
        output: Where the manifest is.
        source: URI of the source's root.
        fields: Which members are images.
        max_bytes: A larger image is a failure.
        shard_size: Images of a chunk.
        ledger: Remembers how far a worker came that died.
        timeout_s: Seconds that a piece of a shard may take to arrive, tries and waits included.
        words: Finds the words of each image among the fields of its sample; None where images bring none.
    """

    def __init__(
        self,
        output: Folder,
        source: str,
        fields: ImageFields,
        max_bytes: int,
        shard_size: int,
        ledger: Attempts | None = None,
        timeout_s: float = 60.0,
        words: ImageWords | None = None,
    ) -> None:
        self.words, self.schema = words, CARRIER if words is None else WORDS_CARRIER
        self.output, self.source, self.fields = output, source, fields
        self.max_bytes, self.shard_size, self.ledger = max_bytes, shard_size, ledger
        self.timeout_s = timeout_s

    def read(self, task: ShardTask) -> Iterator[pa.Table]:
        """Yield tables of `CARRIER` with the images that are not finished, and write the shard's lists."""
        reading = _Reading(self, task)
        rows: list[dict[str, Any]] = []
        size = 0
        for row in reading.rows():
            if self.ledger is not None and not rows and self.ledger.is_stopping():
                return  # the run ends; the next start reads on behind what is stored
            rows.append(row)
            size += len(row["image"] or b"")
            if len(rows) == _ROWS or size >= _BYTES:
                yield pa.Table.from_pylist(rows, schema=self.schema)
                rows, size = [], 0
        if rows:
            yield pa.Table.from_pylist(rows, schema=self.schema)

    def open(self, name: str) -> BinaryIO:
        """Open a shard; reading goes on where it was after a fault of the connection."""
        return open_patiently(self.source, name, self.timeout_s)


class _Reading:
    """One pass over one shard."""

    def __init__(self, reader: ShardReader, task: ShardTask) -> None:
        self.reader, self.task = reader, task
        self.path = f"{open_storage(reader.source)[1].rstrip('/')}/{task.name}"
        self.uri = join_uri(redact(reader.source), task.name)
        self.finished = IdSet()
        self.finished.add(np.frombuffer(task.finished, "S16"))
        self.closed: dict[int, int] = {}
        self.chunk = _Chunk(0)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of all images that are not finished; the shard is listed before the last one."""
        try:
            end, kind = yield from self._walk()
            problem = clean_reason(end.problem) if end.problem is not None else None
            if problem is not None:
                known = self.task.name in self.finished
                failure = None if known else Failure("list", kind, problem)
                yield from self._add(self._broken(problem), failure)
            last = list(self._close())
            self._check_nothing_lost()
            self._finish(end.ignored, problem)
            yield from last
        except _ChangedError as error:
            yield self._set_apart(error)

    def _walk(self) -> Generator[dict[str, Any], None, tuple[TarEnd, str]]:
        kind = "StorageError"
        try:
            for item in self._items():
                if isinstance(item, TarEnd):
                    return item, kind
                yield from self._add(self._record(item), self._content(item))
            problem = "the shard was not read to its end"
        except _ReaderDiedError as error:
            problem, kind = str(error), "WorkerCrash"
        except (OSError, ValueError, ImportError, pa.ArrowException) as error:
            problem = _unreadable(
                error, self.uri, len(self.closed) * self.reader.shard_size + len(self.chunk.records)
            )
        return TarEnd(0, 0, problem), kind

    def _add(self, record: ImageRecord, content: Content | None) -> Iterator[dict[str, Any]]:
        if len(self.chunk.records) == self.reader.shard_size:
            yield from self._close()
        self.chunk.records.append(record)
        if content is not None and self.chunk.number not in self.task.done:
            before, self.chunk.held = self.chunk.held, (record, content)
            if before:
                yield self._row(self.chunk.number, *before)

    def _close(self) -> Iterator[dict[str, Any]]:
        """Write the chunk's list, and hand on the image that was held back.

        Raises:
            _ChangedError: The chunk is finished and lists others.
        """
        chunk, self.chunk = self.chunk, _Chunk(self.chunk.number + 1)
        if not chunk.records:
            return
        part, images = part_name(self.task.number, chunk.number), len(chunk.records)
        if chunk.number not in self.task.done:
            write_part(self.reader.output, part, chunk.records)
        elif _listed_ids(self.reader.output, part) != [record.image_id for record in chunk.records]:
            raise _ChangedError(chunk.number)
        self.closed[chunk.number] = images
        if chunk.held:
            yield self._row(chunk.number, *chunk.held, images)

    def _check_nothing_lost(self) -> None:
        if lost := set(self.task.done) - set(self.closed):
            raise _ChangedError(min(lost))

    def _set_apart(self, error: "_ChangedError") -> dict[str, Any]:
        """End the shard with a failure: finished chunks stay as they are, and what it holds now is not theirs."""
        changed = part_name(self.task.number, error.chunk)
        problem = (
            f"the shard has changed since images of it were finished ({changed} lists others); --retry-failed reads it "
            "anew"
        )
        self.closed |= self.task.done
        number, record = 1 + max(self.closed), self._broken(problem)
        self.chunk = _Chunk(number, [record])
        list(self._close())
        self._finish(0, problem)
        return self._row(number, record, Failure("list", "StorageError", problem), 1)

    def _finish(self, ignored: int, problem: str | None) -> None:
        listing = ShardListing(self.task.name, self._bytes(), self.closed, ignored, problem)
        write_listing(self.reader.output, self.task.number, listing)

    def _bytes(self) -> int | None:
        return shard_bytes(self.reader.source, self.task.name)

    def _broken(self, problem: str) -> ImageRecord:
        return ImageRecord(self.task.name, self.uri, "broken", path=self.path, reason=problem)

    def _record(self, image: TarImage) -> ImageRecord:
        image_id = f"{self.task.name}/{image.key}"
        return ImageRecord(
            image_id,
            self.uri,
            "tar",
            path=self.path,
            offset=image.offset,
            length=image.length,
            member=image.name,
            carried=_carried(image),
        )

    def _content(self, image: TarImage) -> Content | None:
        """Return what to hand on for an image; None for one that is finished."""
        if not self._wanted(image.key):
            return None
        if image.data is None:
            return Failure(_STAGE, "ImageError", image.problem or "the shard gave no bytes")
        words = None if self.reader.words is None else self.reader.words.of_beside(image.beside)
        return words if isinstance(words, Failure) else (image.data, words)

    def _wanted(self, key: str) -> bool:
        return f"{self.task.name}/{key}" not in self.finished

    def _row(
        self, chunk: int, record: ImageRecord, content: Content, part_images: int | None = None
    ) -> dict[str, Any]:
        image, words = (None, None) if isinstance(content, Failure) else content
        return {
            "part": part_name(self.task.number, chunk),
            "image_id": record.image_id,
            "uri": record.uri,
            "annotation": None,
            "image": image,
            "failure": content.to_dict() if isinstance(content, Failure) else None,
            "seconds": None,
            "part_images": part_images,
            "own_words": words,
        }

    def _items(self) -> Iterator[TarImage | TarEnd]:
        """Yield what the shard holds, noting in the ledger how far it was read.

        Raises:
            _ReaderDiedError: Workers died while they read the next image, each time.
        """
        reader = self.reader
        with reader.open(self.task.name) as stream:
            items = stream_tar(stream, reader.fields, reader.max_bytes, self._wanted)
            yield from items if reader.ledger is None else _noted(items, self.task.name, reader.ledger)


def _noted(items: Iterator[Item], shard: str, ledger: Attempts) -> Iterator[Item]:
    """Note in the ledger which images are being read: some together, or one by one where a worker died before."""
    for first in count(0, _WINDOW):
        window = f"{shard}@{first}-"
        careful = bool(ledger.begin(_STAGE, [window]))
        for position in range(first, first + _WINDOW):
            alone = f"{shard}@{position}"
            if careful:
                deaths = ledger.begin(_STAGE, [alone]).get(alone, 0)
                if deaths >= MAX_DEATHS:
                    raise _ReaderDiedError(
                        f"the worker died {deaths} times while it read on behind {position} images of this shard"
                    )
                _LOG.warning("reading %s died; image %d of it is tried alone", shard, position)
                ledger.begin_alone(_STAGE, alone)
            item = next(items, None)
            if careful:
                ledger.end(_STAGE, [alone])
            if item is None:
                ledger.end(_STAGE, [window])
                return
            yield item
        ledger.end(_STAGE, [window])


def images_of_shard(
    source: str, shard: str, fields: ImageFields, image_ids: Collection[str], max_bytes: int
) -> dict[str, bytes]:
    """Return images of one shard by their ids, wherever its file has them: it is read up to the last of them.

    Args:
        source: URI of the source's root.
        fields: Which members are images.
        max_bytes: Larger images are left out, as are those that cannot be had.
    """
    left, found = set(image_ids), dict[str, bytes]()
    with open_patiently(source, shard) as stream:
        items = stream_tar(stream, fields, max_bytes, lambda key: f"{shard}/{key}" in left)
        while left and isinstance(item := next(items, None), TarImage):
            image_id = f"{shard}/{item.key}"
            if image_id in left:
                left.discard(image_id)
                if item.data is not None:
                    found[image_id] = item.data
    return found


def shard_bytes(source: str, name: str) -> int | None:
    """Return the size of a shard's file; None where the storage does not say."""
    filesystem, base = open_storage(source)
    try:
        size: int | None = filesystem.get_file_info(f"{base.rstrip('/')}/{name}").size
    except (OSError, pa.ArrowException):
        return None
    return size


def _carried(image: TarImage) -> str | None:
    """Turn what was wanted of the image's sample into the text that its list keeps."""
    return json.dumps(read_beside(image.beside)) if image.beside else None


def _listed_ids(output: Folder, part: str) -> list[str] | None:
    try:
        ids: list[str] = read_part(output, part, ["image_id"])["image_id"].to_pylist()
    except DamagedFileError:
        return None
    return ids


def _unreadable(error: BaseException, shown: str, images: int) -> str:
    kind = error.error_type if isinstance(error, TransferError) else type(error).__name__
    if kind == "FileNotFoundError":
        escaped = any(escape in shown for escape in ("\\x", "%5Cx"))
        hint = "; a name that is not valid UTF-8 is shown with escapes: rename such a file" if escaped else ""
        return f"the shard is missing: there is no {shown}{hint}"
    return (
        f"the shard cannot be read on: {clean_reason(str(error)) or kind}; {images} images before that point"
    )


class _ReaderDiedError(Exception):
    """A shard whose reading ends its process."""


class _ChangedError(Exception):
    """A shard that does not hold what a finished chunk of it lists."""

    def __init__(self, chunk: int) -> None:
        super().__init__(chunk)
        self.chunk = chunk
