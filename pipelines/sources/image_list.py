"""Lists of images: a text file with a path or address a line, a JSON list, or the images of a COCO file."""

import json
import posixpath
import zlib
from collections.abc import Collection, Iterator
from hashlib import blake2b
from typing import Any, BinaryIO, NamedTuple

import pyarrow.fs as pafs

from ovss_core.errors import ConfigError, StorageError
from pipelines.sources.fetch import ImageFetcher
from pipelines.sources.folder import FolderSource, file_record
from pipelines.sources.json_list import named_images
from pipelines.sources.kinds import kind_for
from pipelines.sources.listing import kind_at, nearest_place
from pipelines.sources.record import ImageRecord
from pipelines.storage import open_seekable, open_storage, redact
from pipelines.transport.addresses import has_secrets, local_path, printable
from pipelines.transport.causes import TransferError, blamed_on
from pipelines.transport.data_address import is_data_address
from pipelines.transport.patience import patiently

LIST_ENDINGS = (".txt", ".lst", ".list", ".json")
_OTHERWISE = {
    (".zip", ".7z", ".rar"): "is an archive: unpack it and give the folder",
    (
        ".csv",
        ".tsv",
        ".jsonl",
        ".ndjson",
        ".xlsx",
    ): "is a table: give a .txt list, one path or address a line, or convert it and give it as --parquet",
    (".mp4", ".mov", ".avi", ".mkv", ".webm"): "is a video: take its frames out and give their folder",
}
_LIST_S = 300.0
_LONGEST_LINE = 1 << 16


class _Item(NamedTuple):
    """A line of a list: what it says, and where it says so."""

    text: str
    offset: int
    length: int
    reason: str | None = None


def open_images(pattern: str) -> "FolderSource | ListSource":
    """Open what ``--images`` names: a folder, a glob, a file, a web address, or a list of these.

    Raises:
        ConfigError: It is a container that another flag takes.
        StorageError: Nothing is there.
    """
    name = pattern if local_path(pattern) is not None else pattern.partition("?")[0]
    lower = name.lower()
    if "://" in pattern and lower.partition("://")[0] in ("http", "https"):
        if lower.endswith(LIST_ENDINGS):
            raise ConfigError(f"{redact(pattern)} is a list on a web server: download it and give the file")
        if name.endswith("/") or name.count("/") < 3 or "*" in name:
            raise ConfigError(
                f"{redact(pattern)} is no single image, and a web server cannot be listed: give a .txt list of addresses"
            )
        return ListSource(pattern, single=True)
    wild = any(character in name for character in "*[{") and _is_missing(pattern)
    if not wild and not lower.endswith("/") and (lower.endswith(LIST_ENDINGS) or _flag_for(lower)):
        kind = kind_at(pattern)
        if kind == pafs.FileType.Directory:
            return FolderSource(pattern)
        if kind == pafs.FileType.NotFound:
            raise StorageError(f"no such file: {redact(pattern)}{nearest_place(pattern)}; check the path")
        if other := _flag_for(lower):
            raise ConfigError(f"{redact(pattern)} {other}")
        return ListSource(pattern)
    return FolderSource(pattern)


def _is_missing(pattern: str) -> bool:
    return "://" in pattern or kind_at(pattern) == pafs.FileType.NotFound


def _flag_for(name: str) -> str | None:
    """Say what to do with a file of another kind."""
    if found := kind_for(name):
        return f"is a {found[0]}: give it as {found[1]}"
    return next((text for endings, text in _OTHERWISE.items() if name.endswith(endings)), None)


class ListSource:
    """Images that a list names.

    Text: one path or URI a line; empty lines and lines that begin with ``#`` are passed over. JSON: a list of such
    texts, or a COCO file, whose ``images`` are found by ``file_name`` beside the file (or in the folders where COCO
    puts them), else by ``coco_url``. Paths are relative to the list's folder. What is named twice is one image.

    The id is the path as written, made plain, or the address without secrets; addresses that differ in what is left
    out get ``#2``, ``#3``, ...

    Args:
        pattern: The list; local path or URI. With `single`, the address of one image on a web server.
    """

    def __init__(self, pattern: str, single: bool = False) -> None:
        self.pattern = pattern
        self.ignored = 0
        self._single = single
        if single:
            self._root = pattern
            return
        filesystem, self._path = open_storage(pattern)
        self._filesystem = filesystem
        address, mark, query = pattern.partition("?") if local_path(pattern) is None else (pattern, "", "")
        head, slash, _ = address.rpartition("/")
        self._root = f"{head or '/'}{mark}{query}" if slash else "."
        self._json = address.lower().endswith(".json")

    @property
    def uri(self) -> str:
        """The folder of the list, which opens the file system of the records' paths."""
        return self._root

    def describe(self) -> dict[str, Any]:
        """Return what identifies this source, without credentials."""
        return {"kind": "list", "uri": redact(self.pattern)}

    def fetcher(self, max_bytes: int, timeout_s: float) -> ImageFetcher:
        """Return what fetches the bytes of its records."""
        return ImageFetcher(self.uri, max_bytes=max_bytes, timeout_s=timeout_s)

    def containers(self) -> None:
        """Return None: there are no shards."""

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        """List the images in the order of the list.

        Raises:
            ConfigError: The JSON holds no images.
            StorageError: The list cannot be read.
        """
        if self._single:
            yield ImageRecord(redact(self.pattern), redact(self.pattern), "file")
            return
        self.ignored = 0
        seen: set[bytes] = set()
        ids: set[bytes] = set()
        for item in self._items():
            digest = _digest(
                item.text
                if "://" in item.text or is_data_address(item.text)
                else posixpath.normpath(item.text)
            )
            if digest not in seen:
                seen.add(digest)
                yield self._record(item, ids)

    def _items(self) -> Iterator[_Item]:
        if self._json:
            values = self._read_json()
            yield from (_Item(text, -1, -1) for text in named_images(values, self.pattern))
            return
        with self._open() as stream:
            offset = 0
            while line := self._next_piece(stream):
                start, offset, end = offset, offset + len(line), line
                while len(end) == _LONGEST_LINE and not end.endswith(b"\n"):
                    end = self._next_piece(stream)
                    offset += len(end)
                if item := _read_line(line, start):
                    yield item

    def _next_piece(self, stream: BinaryIO) -> bytes:
        """Return a line, or the next piece of one that no address is as long as."""
        with blamed_on(self.pattern):
            return stream.readline(_LONGEST_LINE)

    def _open(self) -> BinaryIO:
        def attempt(_: float) -> BinaryIO:
            with blamed_on(self.pattern):
                return open_seekable(self._filesystem, self._path)

        try:
            return patiently(attempt, _LIST_S, f"opening {redact(self.pattern)}")
        except TransferError as error:
            raise StorageError(f"cannot read the list {redact(self.pattern)}: {error}") from error

    def _read_json(self) -> Any:
        with self._open() as stream:
            with blamed_on(self.pattern):
                data = stream.read()
            try:
                return json.loads(data)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{redact(self.pattern)} is no JSON: {error}") from error

    def _record(self, item: _Item, ids: set[bytes]) -> ImageRecord:
        text, public = item.text, redact(self._root)
        remote = "://" in text or is_data_address(text)
        image_id = _unique(printable(redact(text)) if remote else posixpath.normpath(printable(text)), ids)
        if reason := item.reason or _unwritable(text):
            return ImageRecord(image_id, redact(self.pattern), "broken", reason=reason)
        if not remote and not text.startswith("/"):
            base = open_storage(self._root)[1].rstrip("/")
            return file_record(image_id, public, base, posixpath.normpath(text))
        if not remote and printable(text) != text:
            return file_record(image_id, "", "", text.lstrip("/"))
        if not has_secrets(text):
            return ImageRecord(image_id, redact(text), "uri", path=text)
        if item.offset < 0:
            reason = "the address holds data, a user, query or fragment; give such addresses in a .txt list"
            return ImageRecord(image_id, redact(text), "broken", reason=reason)
        return ImageRecord(
            *(image_id, redact(text), "listed", self._path),
            offset=item.offset,
            length=item.length,
            row=zlib.crc32(text.encode()),
        )


def _read_line(line: bytes, start: int) -> _Item | None:
    if start == 0 and line.startswith(b"\xef\xbb\xbf"):
        line, start = line[3:], 3
    text = line.strip()
    if not text or text.startswith(b"#"):
        return None
    if len(line) >= _LONGEST_LINE:
        return _Item(
            printable(text[:80].decode("utf-8", "surrogateescape")),
            start,
            0,
            "the line is too long for an address",
        )
    offset = start + len(line) - len(line.lstrip())
    return _Item(text.decode("utf-8", "surrogateescape"), offset, len(text))


def _unwritable(text: str) -> str | None:
    """Say why no file can be called so; None where one can."""
    try:
        text.encode("utf-8", "strict" if "://" in text else "surrogateescape")
    except UnicodeEncodeError:
        what = (
            "bytes that are no UTF-8; write them as %XX"
            if "://" in text
            else "half of a character (a surrogate)"
        )
        return f"the name holds {what}"
    return None


def _unique(image_id: str, ids: set[bytes]) -> str:
    name, number = image_id, 1
    while (digest := _digest(name)) in ids:
        number += 1
        name = f"{image_id}#{number}"
    ids.add(digest)
    return name


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
