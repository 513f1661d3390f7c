"""Folders and objects wherever they lie: one interface over local disks, object stores and fsspec.

Readers never see half a file: a local file is written under a hidden name in its own folder and renamed; an
object of a store appears when its upload is complete. Whole files are handed over as bytes for that reason:
closing a half-written upload after an error would publish it.

A store that is overloaded or away for a moment is asked again for a while, with a warning; what stays wrong is one
line that says status and cause.
"""

import io
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from ovss_core.errors import StorageError
from pipelines.transport.addresses import join_uri, redact, scrub
from pipelines.transport.causes import TransferError, blamed_on
from pipelines.transport.local import write_local
from pipelines.transport.patience import patiently, within
from pipelines.transport.stores import is_google_store, is_object_store, open_storage
from pipelines.transport.walking import LISTING_ALL_S, key_of, walk

__all__ = ["Folder", "join_uri", "open_seekable", "open_storage", "redact", "scrub", "walk"]

_PATIENCE_S = 90.0
_CALL_S = 300.0
_SLOWEST_BYTES_S = 1 << 18
_PROBE = ".ovss_probe"
Value = TypeVar("Value")


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

    def _call(
        self, action: str, call: Callable[[], Value], longer_s: float = 0.0, may_miss: bool = False
    ) -> Value:
        """Ask the store, again for a while where the fault may pass, and say what is wrong in one line.

        Args:
            longer_s: Seconds beyond the usual that the call may take.

        Raises:
            FileNotFoundError: There is no such file, with `may_miss`.
            StorageError: Anything else.
        """

        def guarded() -> Value:
            with blamed_on(self.uri):
                return call()

        def attempt(_: float) -> Value:
            if self.is_local:
                return guarded()
            return within(_CALL_S + longer_s, guarded, f"{action} {self.public_uri}")

        try:
            return patiently(attempt, _PATIENCE_S, f"cannot {action} {self.public_uri} now")
        except TransferError as error:
            if may_miss and error.error_type == "FileNotFoundError":
                raise FileNotFoundError(f"cannot {action} {self.public_uri}: no such file") from error
            reason = str(error).removesuffix(f": {self.public_uri}")
            raise StorageError(f"cannot {action} {self.public_uri}: {reason}") from error

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's disks."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def exists(self, name: str = "") -> bool:
        """Say whether a file or folder of that name is there."""
        return bool(self._info(name).type != pafs.FileType.NotFound)

    def modified(self, name: str) -> float | None:
        """Return when a file was written, in seconds by the storage's own clock; None where it is gone or not told."""
        info = self._info(name)
        return info.mtime_ns / 1e9 if info.is_file and info.mtime_ns is not None else None

    def is_file(self, name: str = "") -> bool:
        """Say whether a file of that name is there."""
        return bool(self._info(name).is_file)

    def _info(self, name: str) -> pafs.FileInfo:
        return self._call("reach", lambda: self.filesystem.get_file_info(self._at(name)))

    def read(self, name: str) -> bytes:
        """Return the whole file; FileNotFoundError where there is none."""

        def read() -> bytes:
            with self.filesystem.open_input_stream(self._at(name)) as stream:
                data: bytes = stream.read()
                return data

        return self._call(f"read {name} under", read, may_miss=True)

    def open(self, name: str) -> pa.NativeFile:
        """Open a file for random access; FileNotFoundError where there is none."""
        return self._call(
            f"open {name} under", lambda: self.filesystem.open_input_file(self._at(name)), may_miss=True
        )

    def write(self, name: str, data: bytes) -> None:
        """Write the whole file at once, replacing what was there; nobody sees it half written.

        On a local disk it is there for good when this returns, also if the power fails.
        """
        longer_s = len(data) / _SLOWEST_BYTES_S
        self._call(f"write {name} under", lambda: self._write(self._at(name), data), longer_s)

    def _write(self, target: str, data: bytes) -> None:
        if self.is_local:
            write_local(target, data)
        elif is_object_store(self.filesystem):
            _write_stream(self.filesystem, target, data)
        else:
            parent = str(PurePosixPath(target).parent)
            self.filesystem.create_dir(parent, recursive=True)
            hidden = f"{parent}/.{uuid.uuid4().hex}.part"
            _write_stream(self.filesystem, hidden, data)
            self.filesystem.move(hidden, target)

    def names(self, folder: str = "") -> list[str]:
        """Return the sorted names of the files directly in a folder; hidden ones are left out."""
        entries = self._list(folder)
        return sorted(
            entry.base_name for entry in entries if entry.is_file and not entry.base_name.startswith(".")
        )

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the bytes of the files directly in a folder by name, sorted; hidden ones are left out."""
        files = {entry.base_name: entry.size or 0 for entry in self._list(folder) if entry.is_file}
        return {name: files[name] for name in sorted(files) if not name.startswith(".")}

    def folders(self, folder: str = "") -> list[str]:
        """Return the sorted names of the folders directly in a folder; of Google's store, all that lies below is listed for it."""
        if is_google_store(self.filesystem):
            start = len(self._at(folder)) + 1
            below = (key_of(entry)[start:] for entry in self._list(folder, recursive=True))
            return sorted({path.partition("/")[0] for path in below if "/" in path} - {""})
        return sorted(
            entry.base_name for entry in self._list(folder) if entry.type == pafs.FileType.Directory
        )

    def _list(self, folder: str, recursive: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self._at(folder), recursive=recursive, allow_not_found=True)
        action, longer_s = f"list {folder or 'files'} under", LISTING_ALL_S if recursive else 0.0
        return self._call(action, lambda: self.filesystem.get_file_info(selector), longer_s)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        if self._info(name).is_file:
            with suppress(FileNotFoundError):  # another start removed it in between
                self._call(
                    f"remove {name} under", lambda: self.filesystem.delete_file(self._at(name)), may_miss=True
                )

    def remove_folder(self, name: str) -> None:
        """Remove a folder and what lies in it, if it is there."""
        if self.exists(name):
            with suppress(FileNotFoundError):
                self._call(
                    f"remove {name} under", lambda: self.filesystem.delete_dir(self._at(name)), may_miss=True
                )

    def remove_leftovers(self, folder: str = "", older_than_s: float = 0.0) -> None:
        """Remove the hidden halves of files directly in a folder, which writers that were killed left behind.

        Args:
            older_than_s: Spare those that changed within so many seconds: somebody may be writing them.
        """
        for entry in self._list(folder):
            name = entry.base_name
            old = entry.mtime is None or time.time() - entry.mtime.timestamp() >= older_than_s
            if entry.is_file and name.startswith(".") and name.endswith(".part") and old:
                self.remove(f"{folder}/{name}" if folder else name)

    def check_writable(self) -> None:
        """Write and remove a small file; its name is hidden and always the same, so that a kill leaves no trouble.

        Raises:
            StorageError: The folder cannot be written to.
        """
        self.write(_PROBE, b"")
        self.remove(_PROBE)


def open_seekable(filesystem: pafs.FileSystem, path: str, buffer_bytes: int = 1 << 18) -> io.BufferedReader:
    """Open a file for random access; small reads of a remote file are served from a buffer."""
    return io.BufferedReader(filesystem.open_input_file(path), buffer_bytes)


def _write_stream(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)
