"""Batches of other people's pipelines: Arrow tables, NumPy's dictionaries and pandas' frames, each given back as it came.

The stages put columns of their own beside those of the user. A name that the user's table has already is theirs:
the stage's column then begins with ``ovss_``. The stages know their own columns of an earlier stage by type.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ovss_core.errors import ConfigError
from pipelines.run.schema import SECONDS

PREFIX = "ovss_"
_FAILURE_KEYS = {"stage", "error_type", "reason"}


@dataclass(frozen=True)
class Entry:
    """A value of a column that a stage has made for several images at once.

    Attributes:
        column: The values of those images.
        place: Where in it this one lies.
    """

    column: pa.Array
    place: int


@dataclass(frozen=True)
class Batch:
    """Some rows, in whatever form they came.

    Attributes:
        data: A `pyarrow.Table`, a dictionary of NumPy arrays, or a `pandas.DataFrame`.
    """

    data: Any

    @classmethod
    def of(cls, data: Any) -> "Batch":
        """Take up what a pipeline hands to a stage.

        Raises:
            ConfigError: It is no batch.
        """
        if isinstance(data, pa.RecordBatch):
            data = pa.Table.from_batches([data])
        if isinstance(data, pa.Table) or _is_frame(data):
            return cls(data)
        if isinstance(data, Mapping) and all(
            isinstance(column, np.ndarray | list) for column in data.values()
        ):
            return cls({name: _column_array(column) for name, column in data.items()})
        raise ConfigError(
            f"a stage got a {type(data).__name__} that is no batch; call it by map_batches (not map), with batch_format "
            '"pyarrow", "numpy" or "pandas"'
        )

    @property
    def names(self) -> list[Any]:
        """The columns' names."""
        if isinstance(self.data, pa.Table):
            return list(self.data.column_names)
        return list(self.data.columns) if _is_frame(self.data) else list(self.data)

    def __len__(self) -> int:
        if isinstance(self.data, dict):
            return len(next(iter(self.data.values()), ()))
        return len(self.data)

    def column(self, name: str) -> Any:
        """Return a column as it is stored.

        Raises:
            ConfigError: There is none, or more than one.
        """
        found = self.names.count(name)
        if found != 1:
            wrong = f"{found} columns" if found else "no column"
            raise ConfigError(
                f"the batch has {wrong} {name!r} (it has {', '.join(map(str, self.names)) or 'none'}); name the column of "
                "the images with image_column"
            )
        return self.data[name]

    def values(self, name: str) -> list[Any]:
        """Return a column as Python's own values, None where it holds nothing."""
        column = self.column(name)
        values = column.to_pylist() if isinstance(column, pa.ChunkedArray) else list(column)
        return [None if is_missing(value) else value for value in values]

    def replace(self, dropped: Sequence[str], columns: Mapping[str, tuple[list[Any], pa.DataType]]) -> Any:
        """Return the batch, in the form that it came in, without some columns and with others at its end.

        Args:
            columns: Values, or all of them as `Entry`, and for Arrow tables their type, by name.
        """
        columns = {name: (_gathered(values), kind) for name, (values, kind) in columns.items()}
        if isinstance(self.data, pa.Table):
            table = self.data.drop_columns([name for name in dropped if name in self.names])
            for name, (values, kind) in columns.items():
                column = values if isinstance(values, pa.Array) else pa.array(values, kind)
                table = table.append_column(name, column)
            return table
        added = {name: _object_array(_plain(values, kind)) for name, (values, kind) in columns.items()}
        if isinstance(self.data, dict):
            return {name: column for name, column in self.data.items() if name not in dropped} | added
        return self.data.drop(columns=list(dropped)).assign(**added)

    def put(self, columns: Mapping[str, tuple[list[Any], pa.DataType]]) -> Any:
        """Return the batch, in the form that it came in, with other values in columns that it has, which keep their places.

        Args:
            columns: Values, and for Arrow tables their type, by name.
        """
        if isinstance(self.data, pa.Table):
            table = self.data
            for name, (values, kind) in columns.items():
                place = table.schema.get_field_index(name)
                table = table.set_column(place, pa.field(name, kind), pa.array(values, kind))
            return table
        put = {name: _object_array(values) for name, (values, _) in columns.items()}
        return self.data | put if isinstance(self.data, dict) else self.data.assign(**put)

    def own_column(self, name: str, chained: bool) -> str | None:
        """Return the name of the column ``failure`` or ``seconds`` of an earlier stage; None where there is none.

        Args:
            chained: Whether an earlier stage certainly wrote it: then a column of nothing is that one.
        """
        found = (candidate for candidate in (PREFIX + name, name) if candidate in self.names)
        return next((candidate for candidate in found if self._is_own(candidate, name, chained)), None)

    def free_name(self, name: str, dropped: Sequence[str]) -> str:
        """Return a name for a stage's own column that no column of the user has."""
        taken = set(self.names) - set(dropped)
        while name in taken:
            name = PREFIX + name
        return name

    def _is_own(self, candidate: str, name: str, chained: bool) -> bool:
        if self.names.count(candidate) != 1:
            return False
        if isinstance(self.data, pa.Table):
            kind = self.data.schema.field(candidate).type
            is_own = _holds_failures(kind) if name == "failure" else _holds_seconds(kind)
            return is_own or (chained and bool(pa.types.is_null(kind)))
        values = [value for value in self.values(candidate) if value is not None]
        if not values:
            return chained
        if name == "failure":
            return all(isinstance(value, dict) and set(value) == _FAILURE_KEYS for value in values)
        return all(isinstance(value, dict | list | np.ndarray) for value in values)


def as_given(worked: Any, given: Any) -> Any:
    """Return what became of a batch, as a record batch where it was one; stages make tables of those."""
    if not isinstance(given, pa.RecordBatch):
        return worked
    batches = worked.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], worked.schema)


def pairs(seconds: Any) -> list[tuple[str, float]]:
    """Return a value of the column ``seconds`` as pairs, whatever form it has come through."""
    if seconds is None:
        return []
    items = seconds.items() if isinstance(seconds, Mapping) else seconds
    return [(str(step), float(spent)) for step, spent in items if spent is not None]


def is_missing(value: Any) -> bool:
    """Tell whether a value stands for nothing: None, pandas' NA, or the nan that pandas puts in its place."""
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float) and math.isnan(value))
    )


def _holds_failures(kind: pa.DataType) -> bool:
    """Tell whether a column is of the type `FAILURE`, or of what other engines make of it: longer strings, other order."""
    if not pa.types.is_struct(kind):
        return False
    return {field.name for field in kind} == _FAILURE_KEYS and all(_is_text(field.type) for field in kind)


def _holds_seconds(kind: pa.DataType) -> bool:
    """Tell whether a column is of the type `SECONDS`, or of what other engines make of it."""
    return bool(pa.types.is_map(kind) and _is_text(kind.key_type) and pa.types.is_float64(kind.item_type))


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _gathered(values: list[Any]) -> list[Any] | pa.Array:
    """Put entries together in their order; where there is none, nothing stands."""
    parts = {id(value.column): value.column for value in values if isinstance(value, Entry)}
    if not parts:
        return values
    ends = np.cumsum([len(column) for column in parts.values()]).tolist()
    first = dict(zip(parts, [0, *ends], strict=False))
    places = [None if value is None else first[id(value.column)] + value.place for value in values]
    return pa.concat_arrays(parts.values()).take(pa.array(places, pa.int64()))


def _plain(values: list[Any] | pa.Array, kind: pa.DataType) -> list[Any]:
    """Turn pairs into dictionaries, which NumPy's and pandas' ways into Arrow take."""
    if isinstance(values, pa.Array):
        return list(values.to_pylist())
    return [None if value is None else dict(value) for value in values] if kind.equals(SECONDS) else values


def _column_array(column: Any) -> np.ndarray:
    return column if isinstance(column, np.ndarray) else _object_array(column)


def _object_array(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _is_frame(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns")
