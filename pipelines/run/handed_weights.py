"""Weights that reach a whole cluster from one place: fetched once by the driver, and handed to workers with their settings.

A model's setting `pretrained` is the path of a file. Where it is a `HandedFile`, whatever takes it to a process on a machine
without that file (a task, an actor of a pool, also one that joins later) brings the bytes along through Ray's object
store, from which each machine takes them once.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b, file_digest, sha256
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow.fs as pafs

from ovss_core.config import ModelConfig
from ovss_core.errors import WeightsError
from pipelines.storage import open_storage, redact
from pipelines.transport.addresses import host_of
from pipelines.transport.causes import TransferError, blamed_on, early_end
from pipelines.transport.patience import patiently

_PATIENCE_S = 120.0
_PIECE = 1 << 24
_VERSIONS = ("blob_id", "ETag", "etag", "generation", "LastModified", "last_modified")
"""What stores behind fsspec tell of a file that changes when it is replaced: the hub's Git object, HTTP's tag, a time."""
_handed: dict[tuple[str, str], Any] = {}
"""References to files in the object store, by digest and Ray job: put there once."""

_machines = {"others": True}
"""Whether workers may be on other machines than this process; if not, files need not come along."""


@contextmanager
def among_machines(others: bool) -> Iterator[None]:
    """Say whether workers may be on other machines inside the block: a local Ray's store need not hold the weights."""
    before = _machines["others"]
    _machines["others"] = others
    try:
        yield
    finally:
        _machines["others"] = before


class HandedFile(str):
    """The path of a file, which comes along wherever this is unpickled.

    Attributes:
        address: Where it came from, without secrets.
    """

    __slots__ = ("address", "digest")
    address: str
    digest: str | None

    def __new__(cls, path: str, address: str = "", digest: str | None = None) -> "HandedFile":
        """Name a file on this machine."""
        made = super().__new__(cls, path)
        made.address, made.digest = address or path, digest
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Put the bytes into the object store of the cluster that this process has joined, if it has."""
        import ray

        if not ray.is_initialized() or not _machines["others"]:
            return HandedFile, (str(self), self.address, self.digest)
        self.digest = self.digest or _digest(Path(self))
        key = self.digest, ray.get_runtime_context().get_job_id()
        if key not in _handed:
            _handed[key] = ray.put(np.fromfile(self, np.uint8))
        return _arrive, (str(self), self.address, self.digest, _handed[key])


def _arrive(path: str, address: str, digest: str, reference: Any) -> HandedFile:
    """Return the file where it is on this machine, written from the object store if it is not."""
    import ray

    kept = _cache() / f"{digest}{PurePosixPath(path).suffix}"
    for place in (Path(path), kept):
        if place.is_file() and (place == kept or place.stem == digest or _digest(place) == digest):
            _handed.setdefault((digest, ray.get_runtime_context().get_job_id()), reference)
            return HandedFile(str(place), address, digest)
    _write(kept, ray.get(reference))
    _handed.setdefault((digest, ray.get_runtime_context().get_job_id()), reference)
    return HandedFile(str(kept), address, digest)


def with_own_weights(model: ModelConfig, tell: Callable[[str], None] = lambda text: None) -> ModelConfig:
    """Fetch the weights that an address names, and let those that are a file come along to the workers.

    Args:
        tell: Takes how far it is.

    Raises:
        WeightsError: They cannot be had.
    """
    given = model.pretrained
    if isinstance(given, HandedFile):
        return model
    if "://" in given:
        path, digest = fetch(given, tell)
        return replace(model, pretrained=HandedFile(str(path), redact(given), digest))
    return replace(model, pretrained=HandedFile(given)) if Path(given).is_file() else model


def address_of(model: ModelConfig) -> str:
    """Return where a model's weights came from, as it was given and without secrets."""
    given = model.pretrained
    return given.address if isinstance(given, HandedFile) else given


def fetch(address: str, tell: Callable[[str], None] = lambda text: None) -> tuple[Path, str]:
    """Download a file into this machine's cache, unless the same version of it is there; returns it with its SHA-256.

    Raises:
        WeightsError: It cannot be had.
    """

    def attempt(_: float) -> tuple[Path, str]:
        with blamed_on(address):
            filesystem, path = open_storage(address)
            size, version = _version(filesystem, path, address)
            named = f"{redact(address)}\0{size}\0{version}"
            note = _cache() / f"{blake2b(named.encode(), digest_size=16).hexdigest()}.sha256"
            suffix = PurePosixPath(path).suffix
            if version is not None and note.is_file():
                digest = note.read_text()
                if (kept := _cache() / f"{digest}{suffix}").is_file():
                    return kept, digest
            with filesystem.open_input_stream(path) as stream:
                kept, digest = _store(stream, suffix, size, tell, host_of(address))
            note.write_text(digest)
            return kept, digest

    try:
        return patiently(attempt, _PATIENCE_S, f"cannot fetch {redact(address)} now")
    except TransferError as error:
        raise WeightsError(
            f"cannot fetch the weights {redact(address)}: {error}; check --pretrained{_advice(address, error)}"
        ) from error
    except OSError as error:
        raise WeightsError(f"cannot keep the weights {redact(address)} here: {error}") from error


def _advice(address: str, error: TransferError) -> str:
    refused = error.error_type in ("PermissionError", "FileNotFoundError")
    if not (address.startswith("hf://") and refused):
        return ""
    return " (hf://organization/repository/file); a private or gated repository needs HF_TOKEN"


def _version(filesystem: pafs.FileSystem, path: str, address: str) -> tuple[int | None, str | None]:
    """Return a file's size and what tells its versions apart, None where the storage says neither."""
    handler = getattr(filesystem, "handler", None)
    if isinstance(handler, pafs.FSSpecHandler):
        handler.fs.invalidate_cache()  # it may have listed the folder before the file changed
    info = filesystem.get_file_info(path)
    if not info.is_file:
        raise FileNotFoundError(f"no such file: {redact(address)}")
    if info.mtime_ns is not None:
        return info.size, str(info.mtime_ns)
    facts = handler.fs.info(path) if isinstance(handler, pafs.FSSpecHandler) else {}
    return info.size, next((f"{name} {facts[name]}" for name in _VERSIONS if facts.get(name)), None)


def _store(
    stream: Any, suffix: str, size: int | None, tell: Callable[[str], None], host: str
) -> tuple[Path, str]:
    _cache().mkdir(parents=True, exist_ok=True)
    half = _cache() / f".{uuid4().hex}.part"
    digest, written = sha256(), 0
    try:
        with half.open("wb") as file:
            while piece := stream.read(_PIECE):
                digest.update(piece)
                written += file.write(piece)
                tell(f"{written / 1e6:,.0f} MB of {(size or written) / 1e6:,.0f}")
        if size is not None and written < size:
            raise early_end(host, written, size)
        kept = _cache() / f"{digest.hexdigest()}{suffix}"
        half.replace(kept)
    finally:
        half.unlink(missing_ok=True)
    return kept, digest.hexdigest()


def _write(place: Path, data: np.ndarray) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    half = place.with_name(f".{uuid4().hex}.part")
    try:
        data.tofile(half)
        half.replace(place)  # workers of one machine may write it at once: each writes the same
    finally:
        half.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ovss" / "weights"
