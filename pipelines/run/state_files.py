"""The files that a run keeps about itself: read so that a damaged one is told from one that cannot be reached.

A file that is gone, cut, empty or something else raises `DamagedFileError`, which callers repair where the rest of
the output suffices; a storage that does not answer raises plain `StorageError`, which nothing may be concluded from.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovss_core.errors import StorageError
from pipelines.storage import Folder
from pipelines.transport.causes import one_line

_CHECKSUM = "checksum"


class DamagedFileError(StorageError):
    """A file of a run that does not hold what the run wrote into it.

    Attributes:
        name: The file, relative to the output.
    """

    def __init__(self, output: Folder, name: str, reason: str) -> None:
        super().__init__(f"{name} of {output.public_uri} is damaged: {reason}")
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:  # it travels from Ray's workers; __init__ takes other arguments
        return _rebuild, (self.args[0], self.name)


def _rebuild(message: str, name: str) -> DamagedFileError:
    error = DamagedFileError.__new__(DamagedFileError)
    error.args = (message,)
    error.name = name
    return error


def read_file(output: Folder, name: str) -> bytes:
    """Return a file's bytes.

    Raises:
        DamagedFileError: The file is gone or empty.
        StorageError: The storage does not answer.
    """
    try:
        data = output.read(name)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DamagedFileError(output, name, "the file is gone") from error
    except (OSError, pa.ArrowException) as error:
        if not output.exists(name):
            raise DamagedFileError(output, name, "the file is gone") from error
        raise StorageError(f"cannot read {name} of {output.public_uri}: {one_line(error)}") from error
    if not data:
        raise DamagedFileError(output, name, "the file is empty")
    return data


def write_json(output: Folder, name: str, values: Mapping[str, Any], indent: int | None = None) -> None:
    """Write a JSON object with a checksum over its members: changed ones often are sound JSON, too."""
    members = json.loads(json.dumps(values))  # as they will be read
    text = json.dumps({**members, _CHECKSUM: _checksum(members)}, indent=indent, ensure_ascii=False)
    output.write(name, text.encode("utf-8", "backslashreplace"))  # surrogates become JSON's own escapes


def _checksum(members: Mapping[str, Any]) -> str:
    plain = json.dumps(members, sort_keys=True)
    return blake2b(plain.encode(), digest_size=8).hexdigest()


def read_json(output: Folder, name: str, wanted: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Read a JSON object that has the wanted members, each of its type; a checksum is compared if it has one.

    Raises:
        DamagedFileError: It holds something else.
    """
    data = read_file(output, name)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(output, name, f"no JSON ({one_line(error)})") from error
    if not isinstance(values, dict):
        raise DamagedFileError(output, name, "no JSON object")
    if values.pop(_CHECKSUM, None) not in (None, _checksum(values)):
        raise DamagedFileError(output, name, "its content is not what was written (checksum)")
    for member, kind in wanted.items():
        if not isinstance(values.get(member), kind) or (kind is int and isinstance(values[member], bool)):
            raise DamagedFileError(output, name, f"its member {member!r} is missing or of another kind")
    return values


def read_table(
    output: Folder,
    name: str,
    schema: pa.Schema | None = None,
    columns: Sequence[str] | None = None,
    grown: bool = False,
) -> pa.Table:
    """Read a Parquet file: as `schema`, or some columns of it.

    Args:
        grown: The schema may have got new columns since the file was written, which may be null; they are null then.

    Raises:
        DamagedFileError: It is no Parquet file, or one that lacks columns, also of the schema's others.
    """
    data = read_file(output, name)
    needed = [*(schema.names if schema is not None else ()), *(columns or ())]
    wanted = list(columns) if columns is not None else (needed or None)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        table = file.read(wanted)
        lacking = set(needed) - set(file.schema_arrow.names)
        if (
            grown and schema is not None and schema.names[0] not in lacking
        ):  # without its id it is another table
            new = [entry for entry in schema if entry.name in lacking and entry.nullable]
            for entry in new:
                table = table.append_column(entry, pa.nulls(table.num_rows, entry.type))
            lacking -= {entry.name for entry in new}
        if not lacking:
            return _as_schema(table, schema) if schema is not None and columns is None else table
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DamagedFileError(output, name, one_line(error)) from error
    raise DamagedFileError(output, name, f"it has no columns {', '.join(sorted(lacking))}")


def _as_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    metadata = {**(table.schema.metadata or {}), **(schema.metadata or {})}
    return table.select(schema.names).cast(schema).replace_schema_metadata(metadata or None)
