"""Folders that are tables of Delta Lake, Iceberg or Hudi: which of their Parquet files hold rows that still count.

Such a table keeps files, and rows in files, that were deleted or replaced; only its own log says which. Reading
the folder as it lies would label what its owner has deleted.
"""

import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from ovss_core.errors import ConfigError, StorageError
from pipelines.storage import Folder, open_storage, redact
from pipelines.transport.causes import one_line

_LOG = logging.getLogger(__name__)
_DELTA = "_delta_log"
_ICEBERG = re.compile(r"(?:^|/)metadata/[^/]+\.metadata\.json$")
_DELETION_VECTOR = re.compile(r"(?:^|/)deletion_vector_[^/]+\.bin$")
_VERSION = re.compile(r"(\d{20})\.")


@dataclass(frozen=True)
class Snapshot:
    """The current version of a table.

    Attributes:
        files: Paths relative to the table's folder, sorted.
        kept: For files with deleted rows: bool, one a row, False where the row is deleted. Rows behind its end
            are kept.
    """

    files: tuple[str, ...]
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)


def find_snapshot(root: str, names: Sequence[str]) -> Snapshot | None:
    """Read the current version of a Delta table; None for a plain folder.

    Args:
        root: The folder; path or URI.
        names: Its files, those of its log included.

    Raises:
        ConfigError: A table that cannot be read as it is: the message says what to do.
        StorageError: The log cannot be read.
    """
    if Folder(root).exists(".hoodie"):
        raise hudi_error(root)
    if any(_ICEBERG.search(name) for name in names):
        raise ConfigError(
            f"{redact(root)} is an Iceberg table: its folder also holds files of older snapshots and deleted rows; "
            "write the current rows out as Parquet (pyiceberg: table.scan().to_arrow()), or name the current files "
            "with a glob"
        )
    tables = {name[: name.index(_DELTA)].rstrip("/") for name in names if f"/{_DELTA}/" in f"/{name}"}
    if tables == {""}:
        return _read_delta(root, names)
    if tables:
        raise ConfigError(
            f"{redact(root)} holds Delta tables, such as {min(tables - {''})!r}; label one table at a time: give "
            "the folder of the table"
        )
    return None


def warn_of_glob(root: str) -> None:
    """Say that files which were written out by the user lie in a Delta table, deleted rows included."""
    if Folder(root).exists(_DELTA):
        _LOG.warning(
            "%s is a Delta table, and a glob takes its files whether they still count or not; give the folder "
            "itself for the table's current rows",
            redact(root),
        )


def hudi_error(root: str) -> ConfigError:
    """Return the refusal of a Hudi table."""
    return ConfigError(
        f"{redact(root)} is a Hudi table: its folder also holds older versions of its rows; write the current rows "
        "out as Parquet (Spark: spark.read.format('hudi').load(...).write.parquet(...))"
    )


def _read_delta(root: str, names: Sequence[str]) -> Snapshot:
    try:
        from deltalake import DeltaTable
    except ImportError:
        raise ConfigError(
            f"{redact(root)} is a Delta table, whose folder also holds deleted rows; install its reader (pip "
            "install 'ovss[delta]'), or name the current files with a glob"
        ) from None
    try:
        with _local_table(root, names) as place:
            table = DeltaTable(place)
            mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
            listed = [unquote(name) for name in pa.table(table.get_add_actions())["path"].to_pylist()]
            vectors = pa.table(table.deletion_vectors())
            prefix = len(f"{Path(place).absolute()}/")
            kept = {
                _relative(name, prefix): np.asarray(mask, bool)
                for name, mask in zip(
                    vectors["filepath"].to_pylist(), vectors["selection_vector"].to_pylist(), strict=True
                )
            }
    except Exception as error:
        raise StorageError(
            f"cannot read the log of the Delta table {redact(root)}: {one_line(error, root)}"
        ) from error
    if mapping != "none":
        raise ConfigError(
            f"the Delta table {redact(root)} maps column names (delta.columnMapping.mode={mapping}), which its "
            "files do not carry; write its current rows out as Parquet"
        )
    foreign = [name for name in listed if "://" in name or name.startswith("/")]
    if foreign or not kept.keys() <= set(listed):
        raise ConfigError(
            f"the Delta table {redact(root)} refers to files of another folder (a shallow clone); write its current "
            "rows out as Parquet"
        )
    return Snapshot(tuple(sorted(listed)), kept)


def _relative(address: str, prefix: int) -> str:
    path = unquote(urlsplit(address).path) if "://" in address else address
    return path[prefix:]


@contextmanager
def _local_table(root: str, names: Sequence[str]) -> Iterator[str]:
    """Yield a local folder with the table's log: its reader then needs no second set of credentials."""
    filesystem, path = open_storage(root)
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield path
        return
    base = path.rstrip("/")
    log = [name for name in names if name.startswith(f"{_DELTA}/")]
    first = 0
    if f"{_DELTA}/_last_checkpoint" in log:
        with filesystem.open_input_stream(f"{base}/{_DELTA}/_last_checkpoint") as stream:
            first = int(json.loads(stream.read())["version"])
    with tempfile.TemporaryDirectory(prefix="ovss-delta-") as folder:
        for name in [*log, *filter(_DELETION_VECTOR.search, names)]:
            version = _VERSION.match(name.rpartition("/")[2])
            if version and int(version[1]) < first:
                continue
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.open_input_stream(f"{base}/{name}") as stream:
                target.write_bytes(stream.read())
        yield folder
