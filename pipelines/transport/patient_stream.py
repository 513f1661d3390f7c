"""A file that is read from front to back over a connection that may fail."""

import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import pyarrow.fs as pafs

from ovss_core.errors import StorageError
from pipelines.transport.causes import blamed_on
from pipelines.transport.local import kind_of
from pipelines.transport.patience import patiently, within
from pipelines.transport.stores import open_storage

_BUFFER = 1 << 20


def open_patiently(source: str, name: str, timeout_s: float = 60.0) -> BinaryIO:
    """Open a file below a source as a buffered `PatientStream`."""
    return cast(BinaryIO, io.BufferedReader(PatientStream(source, name, timeout_s), _BUFFER))


class PatientStream(io.RawIOBase):
    """A file that is opened again, with ever longer pauses, where reading fails; it goes on where it was."""

    def __init__(self, source: str, name: str, timeout_s: float) -> None:
        super().__init__()
        self._source, self._name, self._timeout_s, self._position = source, name, timeout_s, 0
        self._filesystem, base = open_storage(source)
        self._path = f"{base.rstrip('/')}/{name}"
        self._is_local = isinstance(self._filesystem, pafs.LocalFileSystem)
        self._stream: Any = None
        self._patiently(self._open)

    def _patiently(self, work: Callable[[], Any]) -> Any:
        def guarded() -> Any:
            with blamed_on(self._source):
                return work()

        def attempt(left_s: float) -> Any:
            if self._is_local:
                return guarded()
            return within(left_s, guarded, f"reading {self._name}")

        return patiently(attempt, self._timeout_s, f"reading {self._name}")

    def _open(self) -> None:
        if self._is_local and (kind := kind_of(os.stat(self._path).st_mode)):  # noqa: PTH116
            raise StorageError(f"this is {kind}, not a file")
        self._stream = self._filesystem.open_input_file(self._path)
        if self._position:
            self._stream.seek(self._position)

    def _read(self, size: int) -> bytes:
        if self._stream is None:
            self._open()
        stream, self._stream = self._stream, None
        data: bytes = stream.read(size)
        self._stream = stream  # one that failed, or that a thread still waits for, is not used again
        return data

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say whether the storage can read from anywhere."""
        return self._stream is None or bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go somewhere else in the file."""
        self._position = int(self._stream.seek(offset, whence))
        return self._position

    def tell(self) -> int:
        """Return the place in the file."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read on."""
        data = self._patiently(lambda: self._read(len(buffer)))
        self._position += len(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if not self.closed and self._stream is not None:
            self._stream.close()
        super().close()
