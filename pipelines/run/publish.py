"""The files that readers open: finished parts put together, each part's rows in exactly one file.

While a run works, a part's rows lie in a file of their own under ``_parts/``, which no reader takes for data. At the end
neighboring parts become one file of the table's folder, which names in its metadata the parts that it holds. A part is
where such a file says so, otherwise under ``_parts/``; what is left there besides is a copy. So writing one file moves
its parts, and removing it, after they are written back, moves them home: whatever moment the run is killed at, every
row counts once, and no reader of the folder ever sees one twice.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile

import pyarrow as pa
import pyarrow.parquet as pq

from ovss_core.errors import StorageError
from pipelines.run.fragments import ROW_GROUP, column_compression, encode_parquet
from pipelines.run.state_files import DamagedFileError, read_file, read_table
from pipelines.storage import Folder
from pipelines.transport.causes import one_line

PARTS = "_parts"
HELD = b"ovss_parts"
"""Key in a published file's metadata: the rows of each part that it holds, in order, as a JSON object."""
_LOG = logging.getLogger(__name__)
_THREADS = 8
_SMALL = 0.4


@dataclass(frozen=True)
class Published:
    """What lies in the files that readers open.

    Attributes:
        files: Rows of each part by file, in order.
        places: File of each part.
        damaged: What is wrong with files that cannot be read, by file.
    """

    files: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)

    def rows_of(self, part: str) -> int | None:
        """Return the rows that a published part has; None for one that is under ``_parts/``."""
        return self.files[self.places[part]][part] if part in self.places else None


def part_file(part: str) -> str:
    """Return the path of a finished part's rows while no published file holds them."""
    return f"{PARTS}/{part}.pq"


def published_name(table: str, number: int) -> str:
    """Return the path of a published file."""
    return f"{table}/{table}-{number:05d}.parquet"


def is_published_name(table: str, name: str) -> bool:
    """Say whether a file of the table's folder is named as a published one."""
    return re.fullmatch(rf"{re.escape(table)}-\d{{5,}}\.parquet", name) is not None


def published_sizes(output: Folder) -> dict[str, int]:
    """Return the bytes of every published file of an output, by its path."""
    folders = [name for name in output.folders() if not name.startswith("_")]
    return {
        f"{folder}/{name}": size
        for folder in folders
        for name, size in output.sizes(folder).items()
        if is_published_name(folder, name)
    }


def read_published(output: Folder, table: str) -> Published:
    """Read from their footers which parts the published files hold.

    Raises:
        StorageError: The storage does not answer.
    """
    names = [f"{table}/{name}" for name in output.names(table) if is_published_name(table, name)]

    def held(name: str) -> Mapping[str, int] | str:
        try:
            return _held(output, name)
        except DamagedFileError as error:
            return str(error)

    files: dict[str, Mapping[str, int]] = {}
    places: dict[str, str] = {}
    damaged: dict[str, str] = {}
    with ThreadPoolExecutor(_THREADS) as threads:
        for name, found in zip(names, threads.map(held, names), strict=True):
            if isinstance(found, str):
                damaged[name] = found
            elif not places.keys() & found.keys():  # what holds parts of an earlier file, somebody copied
                files[name] = found
                places.update(dict.fromkeys(found, name))
    return Published(files, places, damaged)


def _held(output: Folder, name: str) -> dict[str, int]:
    try:
        with output.open(name) as stream:
            footer = pq.read_metadata(stream)
        parts = json.loads((footer.metadata or {}).get(HELD, b"null"))
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, StorageError):
            raise
        raise DamagedFileError(output, name, one_line(error)) from error
    sound = isinstance(parts, dict) and all(type(rows) is int and rows > 0 for rows in parts.values())
    if not sound or sum(parts.values()) != footer.num_rows or "image_id" not in footer.schema.names:
        raise DamagedFileError(output, name, "it does not say which parts it holds")
    return dict(parts)


def plan_files(parts: Sequence[tuple[str, int]], limit: int) -> list[list[str]]:
    """Put neighboring parts together.

    Args:
        parts: Names and bytes, in order.
        limit: Bytes of a file; a part that has more stands alone, and a last file of less than four tenths of it joins
            the one before.
    """
    files: list[list[str]] = []
    size = limit
    for part, count in parts:
        if not files or size + count > limit:
            files.append([])
            size = 0
        files[-1].append(part)
        size += count
    if len(files) > 1 and size < _SMALL * limit:
        last = files.pop()
        files[-1] += last
    return files


def free_numbers(output: Folder, table: str) -> Iterator[int]:
    """Yield the numbers behind those of all published files."""
    taken = [
        int(name.rpartition("-")[2].partition(".")[0])
        for name in output.names(table)
        if is_published_name(table, name)
    ]
    number = max(taken, default=-1) + 1
    while True:
        yield number
        number += 1


def publish(output_uri: str, table: str, schema: pa.Schema, number: int, parts: Mapping[str, int]) -> None:
    """Write one file with the rows of some parts, and remove the parts' own files.

    Args:
        table: Name of the table, which is its folder's.
        parts: Rows of each part, all above 0.

    Raises:
        DamagedFileError: A part does not hold its rows; nothing is written.
    """
    output, name = Folder(output_uri), published_name(table, number)
    if read_published(output, table).files.get(name) == dict(parts):  # a task that is run again
        for part in parts:
            output.remove(part_file(part))
        return
    metadata = {**(schema.metadata or {}), HELD: json.dumps(dict(parts)).encode()}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema.with_metadata(metadata),
        compression=column_compression(schema),
        write_page_checksum=True,
    ) as writer:
        for part, rows in parts.items():
            found = read_table(output, part_file(part), schema)
            if found.num_rows != rows:
                raise DamagedFileError(
                    output, part_file(part), f"it has {found.num_rows} rows instead of {rows}"
                )
            writer.write_table(found.replace_schema_metadata(metadata), row_group_size=ROW_GROUP)
    output.write(name, sink.getvalue().to_pybytes())
    for part in parts:
        output.remove(part_file(part))


def take_back(output: Folder, schema: pa.Schema, name: str, held: Mapping[str, int]) -> None:
    """Write the parts of a published file back under ``_parts/``, as far as they can be read, and remove the file."""
    for part, rows in read_held(output, schema, name, held):
        if rows is None:  # what lies under `_parts/` may be older
            output.remove(part_file(part))
        else:
            output.write(part_file(part), encode_parquet(rows))
    output.remove(name)


def read_held(
    output: Folder, schema: pa.Schema, name: str, held: Mapping[str, int]
) -> Iterator[tuple[str, pa.Table | None]]:
    """Yield the rows of each part of a published file; None for a part that is damaged."""
    try:
        data = pa.BufferReader(read_file(output, name))
        file = pq.ParquetFile(data, page_checksum_verification=True)
    except (DamagedFileError, ValueError, pa.ArrowException) as error:
        _LOG.warning("%s", error)
        yield from ((part, None) for part in held)
        return
    first = 0
    for part, rows in held.items():
        groups = range(first, first := first + -(-rows // ROW_GROUP))
        try:
            found = file.read_row_groups(list(groups), columns=schema.names)
            sound = found.num_rows == rows
            yield part, found.cast(schema).replace_schema_metadata(schema.metadata) if sound else None
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            _LOG.warning("%s of %s cannot be read: %s", part, name, one_line(error))
            yield part, None


def read_part_rows(
    output: Folder, part: str, published: Published, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the finished rows of a part, wherever they lie.

    Args:
        columns: None for all.

    Raises:
        DamagedFileError: They cannot be read.
        StorageError: The storage does not answer.
    """
    if part not in published.places:
        return read_table(output, part_file(part), columns=columns)
    name = published.places[part]
    held = published.files[name]
    groups = {key: -(-rows // ROW_GROUP) for key, rows in held.items()}
    first = sum(groups[key] for key in takewhile(lambda key: key != part, groups))
    try:
        with output.open(name) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            return file.read_row_groups(list(range(first, first + groups[part])), columns=columns)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if isinstance(error, StorageError):
            raise
        raise DamagedFileError(output, name, one_line(error)) from error
