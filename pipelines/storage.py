"""Folders and objects wherever they lie: one interface over local disks, object stores and fsspec.

Readers never see half a file: a local file is written under a hidden name in its own folder and renamed; an
object of a store appears when its upload is complete. Whole files are handed over as bytes for that reason:
closing a half-written upload after an error would publish it.
"""

import io
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit, urlunsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from ovss_core.errors import StorageError

_ARROW_SCHEMES = {"file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"}


@dataclass(frozen=True)
class Folder:
    """A place that holds files, local or remote.

    Attributes:
        uri: What the user gave; may hold credentials, so it is passed to workers but never written down.
    """

    uri: str

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The file system behind the URI; one object a process."""
        return open_storage(self.uri)[0]

    @property
    def path(self) -> str:
        """The folder's path inside its file system."""
        return open_storage(self.uri)[1]

    @property
    def public_uri(self) -> str:
        """The URI without user names, passwords and query, or the absolute local path."""
        return redact(self.uri)

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def exists(self, name: str = "") -> bool:
        """Say whether a file or folder of that name is there."""
        return bool(self._info(name).type != pafs.FileType.NotFound)

    def _info(self, name: str) -> pafs.FileInfo:
        try:
            return self.filesystem.get_file_info(self._at(name))
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot reach {self.public_uri}: {_reason(error)}") from error

    def read(self, name: str) -> bytes:
        """Return the whole file; FileNotFoundError where there is none."""
        with self.filesystem.open_input_stream(self._at(name)) as stream:
            data: bytes = stream.read()
            return data

    def write(self, name: str, data: bytes) -> None:
        """Write the whole file at once, replacing what was there; nobody sees it half written."""
        target = self._at(name)
        try:
            if _is_object_store(self.filesystem):
                _write_stream(self.filesystem, target, data)
                return
            parent = str(PurePosixPath(target).parent)
            self.filesystem.create_dir(parent, recursive=True)
            hidden = f"{parent}/.{uuid.uuid4().hex}.part"
            try:
                _write_stream(self.filesystem, hidden, data)
                self.filesystem.move(hidden, target)
            except BaseException:
                with suppress(
                    OSError, pa.ArrowException
                ):  # on a full disk half a file is in the way of the rest
                    self.filesystem.delete_file(hidden)
                raise
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot write {name} under {self.public_uri}: {_reason(error)}") from error

    def names(self, folder: str = "") -> list[str]:
        """Return the sorted names of the files directly in a folder; hidden ones are left out."""
        selector = pafs.FileSelector(self._at(folder), recursive=False, allow_not_found=True)
        entries = self.filesystem.get_file_info(selector)
        return sorted(
            entry.base_name for entry in entries if entry.is_file and not entry.base_name.startswith(".")
        )

    def folders(self, folder: str = "") -> list[str]:
        """Return the sorted names of the folders directly in a folder."""
        selector = pafs.FileSelector(self._at(folder), recursive=False, allow_not_found=True)
        entries = self.filesystem.get_file_info(selector)
        return sorted(entry.base_name for entry in entries if entry.type == pafs.FileType.Directory)

    def unfinished(self, folder: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield name, and size and time, of files directly in a folder that a writer has not renamed (yet)."""
        if _is_object_store(self.filesystem):
            return
        selector = pafs.FileSelector(self._at(folder), recursive=False, allow_not_found=True)
        for entry in self.filesystem.get_file_info(selector):
            if entry.is_file and entry.base_name.startswith(".") and entry.base_name.endswith(".part"):
                name = f"{folder}/{entry.base_name}" if folder else entry.base_name
                yield name, (entry.size or 0, entry.mtime_ns or 0)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        if self._info(name).is_file:
            self.filesystem.delete_file(self._at(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder and what lies in it, if it is there."""
        if self.exists(name):
            self.filesystem.delete_dir(self._at(name))

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StorageError: The folder cannot be written to.
        """
        probe = f"_ovss_probe_{uuid.uuid4().hex}"
        self.write(probe, b"")
        self.remove(probe)


@lru_cache(maxsize=64)
def open_storage(uri: str) -> tuple[pafs.FileSystem, str]:
    """Open the file system behind a local path or URI.

    Args:
        uri: A local path, ``file://``, ``s3://``, ``gs://`` and what else pyarrow knows (options such as
            ``?endpoint_override=127.0.0.1:5000&scheme=http`` go in the query), or any other fsspec protocol.

    Returns:
        The file system and the path inside it.

    Raises:
        StorageError: No file system for that URI, or one that only one process can see.
    """
    scheme = urlsplit(uri).scheme if "://" in uri else ""
    if scheme == "memory":
        raise StorageError(
            f"{uri} lies in the memory of one process, which the workers of a job do not share; give a folder, "
            "or a bucket of an object store"
        )
    try:
        if not scheme:
            return pafs.LocalFileSystem(), os.path.abspath(uri)  # noqa: PTH100 (Path would resolve "..")
        if scheme in _ARROW_SCHEMES:
            filesystem, path = pafs.FileSystem.from_uri(uri)
            return filesystem, path
        handler, path = fsspec.core.url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(handler)), path
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise StorageError(
            f"cannot open {redact(uri)}: {_reason(error)}; give a path, or a URI such as s3://bucket/folder"
        ) from error


def redact(uri: str) -> str:
    """Return a URI without credentials and query, ready to be written down; a path becomes absolute."""
    if "://" not in uri:
        return str(Path(uri).absolute())
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def join_uri(public_root: str, relative: str) -> str:
    """Return the address of a file below a root that `redact` returned; only URIs are percent-encoded."""
    if "://" not in public_root:
        return f"{public_root.rstrip('/')}/{relative}" if relative else public_root
    return f"{public_root.rstrip('/')}/{quote(relative)}" if relative else public_root


def walk(filesystem: pafs.FileSystem, root: str) -> Iterator[tuple[str, int]]:
    """Yield (path relative to the root, size) of every file below a folder, sorted, folder by folder.

    Names that start with a dot are left out. Memory is bounded by the largest single folder.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield from _walk_local(root, "", frozenset())
        return
    yield from _walk_remote(filesystem, root.rstrip("/"), "")


def _walk_local(root: str, below: str, parents: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    here = os.path.join(root, below)  # noqa: PTH118 (one string a file; Path objects cost ten times that)
    identity = os.stat(here)  # noqa: PTH116
    key = (identity.st_dev, identity.st_ino)
    if key in parents:  # a symbolic link that points back up
        return
    with os.scandir(here) as entries:
        listed = sorted((entry.name, entry) for entry in entries if not entry.name.startswith("."))
    for name, entry in listed:
        relative = f"{below}/{name}" if below else name
        if entry.is_dir():
            yield from _walk_local(root, relative, parents | {key})
        else:
            yield relative, 0 if entry.is_symlink() else entry.stat().st_size


def _walk_remote(filesystem: pafs.FileSystem, root: str, below: str) -> Iterator[tuple[str, int]]:
    here = f"{root}/{below}" if below else root
    entries = filesystem.get_file_info(pafs.FileSelector(here, recursive=False))
    for entry in sorted(entries, key=lambda entry: entry.base_name):
        relative = f"{below}/{entry.base_name}" if below else entry.base_name
        if entry.base_name.startswith("."):
            continue
        if entry.type == pafs.FileType.Directory:
            yield from _walk_remote(filesystem, root, relative)
        else:
            yield relative, entry.size or 0


def open_seekable(filesystem: pafs.FileSystem, path: str, buffer_bytes: int = 1 << 18) -> io.BufferedReader:
    """Open a file for random access; small reads of a remote file are served from a buffer."""
    return io.BufferedReader(filesystem.open_input_file(path), buffer_bytes)


def _write_stream(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def _is_object_store(filesystem: pafs.FileSystem) -> bool:
    if isinstance(filesystem, pafs.PyFileSystem):
        protocol = filesystem.handler.fs.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        return not names & {"file", "local", "sftp", "ssh", "smb", "nfs"}
    return not isinstance(filesystem, pafs.LocalFileSystem)


def _reason(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def scrub(text: str) -> str:
    """Take user names, passwords and queries out of the addresses in a text."""
    return re.sub(r"\w+://[^\s'\"<>]+", lambda found: redact(found[0]), text)
