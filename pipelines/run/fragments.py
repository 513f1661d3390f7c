"""Rows of unfinished parts: small files whose names follow from the images in them.

A repeated task writes the same file again. A fragment that cannot be read, or that holds something else, goes, and
its images are done again; rows of images that its part does not have are passed over.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.run.state_files import DamagedFileError, read_table
from pipelines.storage import Folder

FRAGMENTS = "_fragments"
_LOG = logging.getLogger(__name__)
ROW_GROUP = 128
"""Rows of a row group of every file with rows of images."""
_SECONDS = b"ovss_seconds"
_NO_ROWS = pa.schema([pa.field("image of this run", pa.string(), nullable=False)])


def write_fragment(
    output: Folder, part: str, tables: Mapping[str, pa.Table], seconds: Mapping[str, float]
) -> None:
    """Store rows of a part; the time they took goes with the first table."""
    times = dict(seconds)
    for name, table in tables.items():
        if table.num_rows:
            ids = "\n".join(table["image_id"].to_pylist())
            key = blake2b(ids.encode(), digest_size=12).hexdigest()
            stamped = table.replace_schema_metadata(
                {**(table.schema.metadata or {}), _SECONDS: json.dumps(times).encode()}
            )
            output.write(f"{FRAGMENTS}/{part}/{key}.{name}.pq", encode_parquet(stamped))
            times = {}


def read_fragments(
    output: Folder, part: str, schemas: Mapping[str, pa.Schema]
) -> Iterator[tuple[str, pa.Table, dict[str, float]]]:
    """Yield kind, rows and seconds of each fragment of a part; one that is damaged is removed.

    Args:
        schemas: Schema of each kind of rows, such as "labels" and "failures".
    """
    folder = f"{FRAGMENTS}/{part}"
    for name in output.names(folder):
        kind = name.partition(".")[2].removesuffix(".pq")
        try:
            rows = read_table(output, f"{folder}/{name}", schemas.get(kind, _NO_ROWS), grown=True)
            yield kind, rows, _seconds(rows)
        except DamagedFileError as error:
            _LOG.warning("%s; its images are done again", error)
            output.remove(f"{folder}/{name}")


def finished_ids(output: Folder, part: str) -> set[str]:
    """Return the ids in a part's fragments."""
    folder = f"{FRAGMENTS}/{part}"
    ids: set[str] = set()
    for name in output.names(folder):
        try:
            ids.update(read_table(output, f"{folder}/{name}", columns=["image_id"])["image_id"].to_pylist())
        except DamagedFileError as error:
            _LOG.warning("%s; its images are done again", error)
            output.remove(f"{folder}/{name}")
    return ids - {None}


def encode_parquet(table: pa.Table) -> bytes:
    """Encode a table with checksums; columns of bytes hold compressed images already and are stored as they are."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=ROW_GROUP,
        compression=column_compression(table.schema),
        write_page_checksum=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


@lru_cache(maxsize=16)
def column_compression(schema: pa.Schema) -> dict[str, str]:
    """Return how each column is stored: bytes hold compressed images already, and stay as they are."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    raw = {entry.name for entry in schema if pa.types.is_binary(entry.type)}
    return {column.path: "NONE" if column.path in raw else "ZSTD" for column in columns}


def _seconds(rows: pa.Table) -> dict[str, float]:
    try:
        values = json.loads((rows.schema.metadata or {}).get(_SECONDS, b"{}"))
        return {str(name): float(value) for name, value in values.items()}
    except (ValueError, AttributeError, TypeError):
        return {}
