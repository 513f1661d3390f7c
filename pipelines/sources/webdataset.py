"""WebDataset tar shards: every image is a byte range of a tar file, found from the headers alone."""

import tarfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from ovss_core.errors import StorageError
from pipelines.sources.folder import has_image_extension
from pipelines.sources.listing import list_files
from pipelines.sources.record import ImageRecord
from pipelines.storage import join_uri, open_seekable, open_storage, redact

_SCANS_AT_ONCE = 8


class WebDatasetSource:
    """Images in tar shards.

    The id of an image is ``shard path/key``; the key is the member's path up to the first dot of its file name,
    as WebDataset defines it. A key that comes again in its shard gets ``#2``, ``#3``, ... A shard that ends
    early gives its readable images and one failure row that names the shard.

    Args:
        pattern: A tar file, a folder of ``*.tar``, or a glob such as ``train-{0000..0127}.tar``.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.ignored = 0
        self._root, files = list_files(pattern, _is_tar)
        self._shards = [name for name, _, accepted in files if accepted]
        if not self._shards:
            raise StorageError(
                f"no .tar shard in {redact(pattern)}; give a tar file, a folder of them or a glob"
            )

    @property
    def uri(self) -> str:
        """The root that opens the file system of the records' paths."""
        return self._root

    def describe(self) -> dict[str, Any]:
        """Return what identifies this source, without credentials."""
        return {"kind": "webdataset", "uri": redact(self.pattern)}

    def containers(self) -> list[str]:
        """Return the shards there are."""
        return list(self._shards)

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        """List the images shard by shard, in the order of the tar files."""
        self.ignored = 0
        filesystem, base = open_storage(self._root)
        public = redact(self._root)
        known = frozenset(skip)
        todo = iter(name for name in self._shards if name not in known)

        def scan(name: str) -> tuple[list[ImageRecord], int]:
            return scan_tar(filesystem, f"{base.rstrip('/')}/{name}", name, join_uri(public, name))

        with ThreadPoolExecutor(_SCANS_AT_ONCE) as threads:
            while names := list(islice(todo, _SCANS_AT_ONCE)):
                for records, ignored in threads.map(scan, names):
                    self.ignored += ignored
                    yield from records


def scan_tar(filesystem: pafs.FileSystem, path: str, name: str, uri: str) -> tuple[list[ImageRecord], int]:
    """List the images of one shard from its headers.

    Args:
        path: Path of the shard inside the file system.
        name: The shard's name in image ids.
        uri: The shard's public address.

    Returns:
        The records, the last one "broken" if the shard cannot be read to its end; and the members passed over.
    """
    records: list[ImageRecord] = []
    seen: dict[str, int] = {}
    ignored = 0
    try:
        size = filesystem.get_file_info(path).size or 0
        with open_seekable(filesystem, path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it keeps every header; a shard may hold many
                if not member.isfile() or not has_image_extension(member.name):
                    ignored += member.isfile()
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                image_id = _unique(f"{name}/{_key(member.name)}", seen)
                records.append(
                    ImageRecord(
                        image_id, uri, "tar", path=path, offset=member.offset_data, length=member.size
                    )
                )
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        reason = f"the shard cannot be read to its end: {error}; {len(records)} images before that point"
        records.append(ImageRecord(name, uri, "broken", path=path, reason=reason))
    return records, ignored


def _unique(image_id: str, seen: dict[str, int]) -> str:
    seen[image_id] = seen.get(image_id, 0) + 1
    if seen[image_id] == 1:
        return image_id
    return _unique(f"{image_id}#{seen[image_id]}", seen)


def _key(member_name: str) -> str:
    name = member_name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    path = PurePosixPath(name.removeprefix("./"))
    return (path.parent / path.name.split(".", 1)[0]).as_posix()


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")
