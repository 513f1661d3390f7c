"""Columns that a corpus has beside its images, and that travel to the labels: of tables, and of the files beside images.

They are read when a part is finished, and never pass through the stages. A shard's are found while it is streamed and
kept in its list, because only then its members are seen.
"""

import json
import logging
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovss_core.errors import ConfigError, ImageError, StorageError
from pipelines.storage import open_storage
from pipelines.transport.causes import one_line
from pipelines.transport.whole import read_inside

_LOG = logging.getLogger(__name__)
KINDS = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
TEXT, FIELDS = "txt", "json"
"""Endings of the files beside an image that hold its caption, and what else is known of it."""
MAX_BYTES = 1 << 20
_THREADS = 8
_TIMEOUT_S = 60.0
Row = Mapping[str, Any]


@dataclass(frozen=True)
class CarriedColumn:
    """One column that travels.

    Attributes:
        name: In the source: a column of a table, a key of the ``.json`` beside an image, "txt" for what the ``.txt`` there
            holds, or "json" for all of the other.
        kind: Its type in the labels; what does not fit it is null.
        label: Its name in the labels.
    """

    name: str
    kind: pa.DataType
    label: str


@dataclass(frozen=True)
class CarriedColumns:
    """What travels from one source.

    Attributes:
        source: URI of the source's root, credentials included.
    """

    source: str
    columns: tuple[CarriedColumn, ...]

    @property
    def fields(self) -> list[pa.Field]:
        """The columns of the labels."""
        meaning = b"from the source"
        return [
            pa.field(column.label, column.kind, metadata={b"description": meaning}) for column in self.columns
        ]

    def read(self, rows: Sequence[Row]) -> list[pa.Array]:
        """Return the columns for rows of a manifest; what cannot be read is null, with a line in the log.

        Args:
            rows: With all columns of `MANIFEST_SCHEMA`.
        """
        found: dict[int, Mapping[str, Any]] = {}
        files: list[int] = []
        for (path, group), places in groupby(range(len(rows)), lambda place: table_of(rows[place])):
            members = list(places)
            if path is not None and group is not None:
                found.update(
                    zip(members, self._of_table(path, group, [rows[place] for place in members]), strict=True)
                )
                continue
            files += [place for place in members if rows[place]["container"] == "file"]
            for place in members:
                if rows[place]["carried"] is not None:
                    found[place] = json.loads(rows[place]["carried"])
        with ThreadPoolExecutor(_THREADS) as threads:
            beside = threads.map(lambda place: self._beside(rows[place]["path"]), files)
            found.update(zip(files, beside, strict=True))
        values = [found.get(place, {}) for place in range(len(rows))]
        return [
            pa.array([_fitted(value.get(column.name), column.kind) for value in values], column.kind)
            for column in self.columns
        ]

    def _of_table(self, path: str, group: int, rows: Sequence[Row]) -> list[Mapping[str, Any]]:
        names = [column.name for column in self.columns]
        try:
            with open_storage(self.source)[0].open_input_file(path) as stream:
                file = pq.ParquetFile(stream)
                there = [name for name in names if name in file.schema_arrow.names]
                table = file.read_row_group(group, there)
            return list(table.take(pa.array([row["row"] for row in rows], pa.int64())).to_pylist())
        except (OSError, ValueError, pa.ArrowException) as error:
            _LOG.warning("no columns are carried from row group %d of %s: %s", group, path, one_line(error))
            return [{}] * len(rows)

    def _beside(self, path: str | None) -> Mapping[str, Any]:
        """Read the files beside an image of a folder, as img2dataset leaves them."""
        names = {column.name for column in self.columns}
        stem = sidecar_stem(path)
        texts = {}
        for ending in (TEXT, FIELDS):
            if (
                stem
                and (ending == FIELDS or TEXT in names)
                and names - ({TEXT} if ending == FIELDS else set())
            ):
                with suppress(StorageError, ImageError):  # not every image has them
                    texts[ending] = read_inside(self.source, f"{stem}.{ending}", MAX_BYTES, _TIMEOUT_S)
        return read_beside(texts)


def parse_columns(
    text: str, taken: Sequence[str], kind_of: Callable[[str], pa.DataType | None] | None = None
) -> tuple[CarriedColumn, ...]:
    """Read what ``--carry`` names: columns by commas, each perhaps with a type behind a colon.

    Args:
        taken: Columns of the labels; a carried one of the same name gets ``source_`` in front.
        kind_of: Type of a column of the source; None where it has no such column. Without it all are text.

    Raises:
        ConfigError: There is no such column or type, or a name comes twice.
    """
    found: list[CarriedColumn] = []
    for piece in filter(None, map(str.strip, text.split(","))):
        name, _, kind = piece.partition(":")
        if kind and kind not in KINDS:
            raise ConfigError(f"--carry {piece!r} has no type {kind!r}; give one of {', '.join(KINDS)}")
        stored = kind_of(name) if kind_of else pa.string()
        if stored is None:
            raise ConfigError(f"--carry names {name!r}, which is no column of the table")
        label = f"source_{name}" if name in taken else name
        if label in [column.label for column in found] or f"source_{name}" in taken:
            raise ConfigError(f"--carry names {name!r} twice")
        found.append(CarriedColumn(name, KINDS[kind] if kind else _plain(stored), label))
    if not found:
        raise ConfigError(f"--carry is {text!r}; name columns, such as caption,width:int")
    return tuple(found)


def read_beside(texts: Mapping[str, bytes]) -> dict[str, Any]:
    """Turn the files beside an image, by their endings, into values by name."""
    values: dict[str, Any] = {}
    if FIELDS in texts:
        whole = texts[FIELDS].decode("utf-8", "replace")
        with suppress(ValueError, RecursionError):
            parsed = json.loads(whole)
            values.update(parsed if isinstance(parsed, dict) else {})
        values[FIELDS] = whole
    if TEXT in texts:
        values[TEXT] = texts[TEXT].decode("utf-8", "replace").strip()
    return values


def sidecar_stem(path: str | None) -> str:
    """Return the path of an image without its ending, which the files beside it share."""
    return posixpath.splitext(path or "")[0]


def table_of(row: Row) -> tuple[str | None, int | None]:
    """Return the Parquet file and row group that a record was listed in."""
    if row["container"] == "parquet":
        return row["path"], row["row_group"]
    return (row["member"], row["row_group"]) if row["row_group"] is not None else (None, None)


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = kind.value_type
        if pa.types.is_string(inner) or pa.types.is_large_string(inner):
            return pa.list_(pa.string())
    return pa.string()


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """Return a value in a column's type; None where it does not fit."""
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [None if entry is None else str(entry) for entry in value] if isinstance(value, list) else None
    if pa.types.is_string(kind):
        if isinstance(value, str):
            return value.encode("utf-8", "replace").decode()
        return json.dumps(value, ensure_ascii=False, default=str)
    try:
        if pa.types.is_boolean(kind):
            return value if isinstance(value, bool) else None
        if pa.types.is_integer(kind):
            whole = int(value)
            return whole if whole == float(value) and -(2**63) <= whole < 2**63 else None
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
