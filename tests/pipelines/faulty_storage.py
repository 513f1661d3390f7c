"""A local disk whose every operation can be counted, refused or cut short, seen through pyarrow's interface."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

Before = Callable[[str, str], None]


class _Local:
    """What pipelines ask of an fsspec file system: whether files are renamed or uploaded."""

    protocol = ("file", "local")


class FaultyHandler(pafs.FileSystemHandler):  # type: ignore[misc]
    """Calls `before` with the operation's name and path, and then the local disk.

    A folder is removed file by file, so that a fault may strike between any two.
    """

    def __init__(self, before: Before) -> None:
        self.before = before
        self.local = pafs.LocalFileSystem()
        self.fs = _Local()

    def get_type_name(self) -> str:
        return "faulty"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        self.before("info", paths[0])
        found: list[pafs.FileInfo] = self.local.get_file_info(paths)
        return found

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        self.before("list", selector.base_dir)
        found: list[pafs.FileInfo] = self.local.get_file_info(selector)
        return found

    def create_dir(self, path: str, recursive: bool) -> None:
        self.before("create_dir", path)
        self.local.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        for file in sorted(Path(path).rglob("*"), reverse=True):
            if not file.is_dir():
                self.before("delete", str(file))
                file.unlink()
        self.before("delete", path)
        shutil.rmtree(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self.before("delete", path)
        self.local.delete_file(path)

    def move(self, source: str, target: str) -> None:
        self.before("move", target)
        self.local.move(source, target)

    def copy_file(self, source: str, target: str) -> None:
        raise NotImplementedError

    def open_input_stream(self, path: str) -> Any:
        self.before("read", path)
        return self.local.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        self.before("read", path)
        return self.local.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.before("write", path)
        return self.local.open_output_stream(path)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError


def use_faulty_storage(monkeypatch: pytest.MonkeyPatch, folder: Path, before: Before) -> None:
    """Let every `Folder` at or below a path work through a `FaultyHandler`."""
    from pipelines import storage

    original = storage.open_storage
    faulty = pafs.PyFileSystem(FaultyHandler(before))

    def opened(uri: str) -> tuple[pafs.FileSystem, str]:
        filesystem, path = original(uri)
        return (faulty, path) if path.startswith(str(folder)) else (filesystem, path)

    monkeypatch.setattr("pipelines.storage.open_storage", opened)


class CountedFile:
    """A file that counts the bytes that are read of it."""

    def __init__(self, stream: Any, count: Callable[[int], None]) -> None:
        self._stream, self._count = stream, count

    def read(self, size: int | None = None) -> bytes:
        data: bytes = self._stream.read(size)
        self._count(len(data))
        return data

    def read_at(self, size: int, offset: int) -> bytes:
        data: bytes = self._stream.read_at(size, offset)
        self._count(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> "CountedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
