"""OpenAI's TorchScript archives, read as data: the tensors come out of the zip, the code in it is never loaded.

An archive is a zip of ``NAME/data.pkl`` (the tree of modules, pickled), ``NAME/data/N`` (one storage of numbers each)
and ``NAME/code/`` (the program). `torch.jit.load` compiles that program and runs parts of it. Here the pickle is read
by an unpickler that knows tensors, storages and plain containers and refuses every other name, and a module is no
more than the attributes it was saved with.
"""

import pickle
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MAX_PICKLE = 1 << 28
"""The tree of a large model takes some hundred kilobytes."""
_STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class ArchiveError(ValueError):
    """The archive is damaged, or holds something else than a tree of tensors."""


def is_torchscript(path: Path) -> bool:
    """Say whether a file is a TorchScript archive, old or new; one that cannot be opened is none."""
    if zipfile.is_zipfile(path):
        with suppress(ArchiveError), _opened(path) as archive:
            return any(entry.split("/")[1:2] == ["constants.pkl"] for entry in archive.namelist())
    return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an archive by their dotted names, without running anything of it.

    Raises:
        ArchiveError: The archive is damaged, or its tree holds more than modules, tensors and plain values.
        OSError: The file cannot be read.
    """
    with _opened(path) as archive:
        tree = next((name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]), None)
        if tree is None:
            raise ArchiveError("it has no tree of modules (data.pkl)")
        folder = tree.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != sys.byteorder.encode():
            raise ArchiveError(f"its numbers are not in this machine's byte order ({sys.byteorder})")
        if archive.getinfo(tree).file_size > _MAX_PICKLE:
            raise ArchiveError("its tree of modules is too large for a model")
        reader = _TreeReader(BytesIO(archive.read(tree)), _Storages(archive, f"{folder}data/"))
        try:
            return dict(_tensors("", reader.load()))
        except ArchiveError:
            raise
        except Exception as error:  # a damaged pickle fails in any way it likes
            raise ArchiveError(f"its tree of modules is damaged ({type(error).__name__})") from error


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; whatever `zipfile` and what it builds on raise for a damaged one becomes one kind of error."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except ArchiveError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
        raise ArchiveError(f"it is a damaged archive ({error})") from error


class _Module:
    """A module of the archive: the attributes it was saved with."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise ArchiveError("a module of it has no attributes")
        self.attributes = state


class _Storages:
    """The numbered records of an archive, each read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._read: dict[str, Tensor] = {}

    def get(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in self._read:
            self._read[key] = self._open(key, dtype, count)
        return self._read[key]

    def _open(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        entry = self._archive.NameToInfo.get(f"{self._folder}{key}")
        if entry is None or count < 0 or entry.file_size != count * dtype.itemsize:
            raise ArchiveError(f"record {key!r} of it is missing or cut")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ArchiveError(f"record {key!r} of it is compressed, which PyTorch does not do")
        data = bytearray(self._archive.read(entry))
        return torch.frombuffer(data, dtype=dtype) if count else torch.empty(0, dtype=dtype)


class _TreeReader(pickle.Unpickler):
    """Builds the tree; knows a fixed list of names and turns every class of the archive's code into `_Module`."""

    def __init__(self, file: BytesIO, storages: _Storages) -> None:
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        raise ArchiveError(f"its tree of modules asks for {f'{module}.{name}'[:80]}, which no weights need")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ArchiveError("its tree of modules refers to something else than numbers")
        return self._storages.get(str(key), dtype, int(count))


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """Return a tensor on a storage; torch refuses one that would reach beyond it."""
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _plain(values: Any, *_: Any) -> Any:
    return values


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        ("torch.jit._pickle", name): _plain
        for name in (
            "build_intlist",
            "build_tensorlist",
            "build_doublelist",
            "build_boollist",
            "restore_type_tag",
        )
    },
}


def _tensors(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Module):
        for key, attribute in value.attributes.items():
            yield from _tensors(f"{name}.{key}" if name else str(key), attribute)
