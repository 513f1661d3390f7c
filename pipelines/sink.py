"""From rows to finished files: fragments as work comes in, one file a manifest part when all of it is there.

A fragment's name follows from the images in it, so a repeated task writes the same file again. A part's rows
are merged in the order of the manifest; only then its marker under ``_done/`` is written, and only after that
its fragments go. Whatever moment the run is killed at, the files that exist are whole, and say what is missing.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ovss_core.errors import OvssError
from pipelines.manifest import part_name, read_part
from pipelines.schema import FAILURES, ROW_NAMES
from pipelines.storage import Folder

FRAGMENTS = "_fragments"
DONE = "_done"
FAILED = "failures"
_ROW_GROUP = 128
_SECONDS = b"ovss_seconds"

Statistics = dict[str, Any]
WRITTEN = pa.schema([("part", pa.int32()), ("labelled", pa.int64()), ("failed", pa.int64())])
"""What the write stage reports to the driver."""


@dataclass(frozen=True)
class OutputTable:
    """The table that a job writes beside its failures.

    Attributes:
        name: Folder of the files, such as "labels".
        schema: Columns; the first are those of `ROW_NAMES`.
        summarize: Turns the rows of a part into statistics, JSON-ready.
    """

    name: str
    schema: pa.Schema
    summarize: Callable[[pa.Table], Statistics]


class WriteFragments:
    """Store finished rows as fragments, and report how many there are.

    `write` takes tables with the columns ``part, image_id, uri, failure, seconds, result``; exactly one of `failure` and
    `result` is set. Returns a table of `WRITTEN`.
    """

    def __init__(self, output: str, table: OutputTable) -> None:
        self.output = Folder(output)
        self.table = table

    def write(self, batch: pa.Table) -> pa.Table:
        """Write one fragment a part that occurs in the batch."""
        written = []
        for part in sorted(set(batch["part"].to_pylist())):
            rows = batch.filter(pc.equal(batch["part"], part))
            failed = pc.is_valid(rows["failure"])
            labelled = _unpack(rows.filter(pc.invert(failed)), "result", self.table.schema)
            failures = _unpack(rows.filter(failed), "failure", FAILURES)
            write_fragment(self.output, part, {self.table.name: labelled, FAILED: failures}, _seconds(rows))
            written.append({"part": part, "labelled": labelled.num_rows, "failed": failures.num_rows})
        return pa.Table.from_pylist(written, schema=WRITTEN)


def write_fragment(
    output: Folder, part: int, tables: Mapping[str, pa.Table], seconds: Mapping[str, float]
) -> None:
    """Store rows of a part; the time they took goes with the first table."""
    times = dict(seconds)
    for name, table in tables.items():
        if table.num_rows:
            digest = blake2b("\n".join(table["image_id"].to_pylist()).encode(), digest_size=12).hexdigest()
            stamped = table.replace_schema_metadata(
                {**(table.schema.metadata or {}), _SECONDS: json.dumps(times).encode()}
            )
            output.write(f"{FRAGMENTS}/{part_name(part)}/{digest}.{name}.parquet", encode_parquet(stamped))
            times = {}


def finished_ids(output: Folder, part: int) -> set[str]:
    """Return the ids in a part's fragments."""
    return {
        image_id
        for table in _fragments(output, part, ["image_id"]).values()
        for image_id in table["image_id"].to_pylist()
    }


def merge_part(output_uri: str, part: int, table: OutputTable) -> dict[str, Any]:
    """Turn a part's fragments into its finished files and its marker.

    Returns:
        The marker's content, or ``{"part": part, "missing": n}`` if rows are still to come (nothing is written).

    Raises:
        OvssError: A fragment holds an image that is not of this part.
    """
    output = Folder(output_uri)
    order = read_part(output, part, ["image_id"])["image_id"].to_pylist()
    fragments = _fragments(output, part)
    labelled = _in_order(fragments, table.name, table.schema, order)
    got = set(labelled["image_id"].to_pylist())
    failed = _in_order(fragments, FAILED, FAILURES, [image_id for image_id in order if image_id not in got])
    strangers = {i for rows in fragments.values() for i in rows["image_id"].to_pylist()} - set(order)
    if strangers:
        raise OvssError(
            f"{FRAGMENTS}/{part_name(part)} of {output.public_uri} holds {len(strangers)} images that are not of "
            f"this part, such as {min(strangers)!r}; remove that folder and run again"
        )
    missing = len(order) - labelled.num_rows - failed.num_rows
    if missing:
        return {"part": part, "missing": missing}
    _publish(output, f"{table.name}/{part_name(part)}.parquet", labelled)
    _publish(output, f"{FAILED}/{part_name(part)}.parquet", failed)
    marker = {
        "part": part,
        "images": len(order),
        "labelled": labelled.num_rows,
        "failed": failed.num_rows,
        "seconds": _sum_seconds(fragments.values()),
        "statistics": table.summarize(labelled),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    output.write(f"{DONE}/{part_name(part)}.json", json.dumps(marker).encode())
    output.remove_folder(f"{FRAGMENTS}/{part_name(part)}")
    return marker


def reopen_part(output: Folder, part: int, table: OutputTable) -> None:
    """Take back the marker of a finished part, so that its failed images are tried again.

    Labelled rows go back to the fragments first; the finished files stay until the part is finished anew.
    """
    path = f"{table.name}/{part_name(part)}.parquet"
    marker = json.loads(output.read(f"{DONE}/{part_name(part)}.json"))
    rows = pq.read_table(pa.BufferReader(output.read(path))) if output.exists(path) else None
    output.remove_folder(f"{FRAGMENTS}/{part_name(part)}")
    if rows is not None:
        write_fragment(output, part, {table.name: rows}, marker["seconds"])
    output.remove(f"{DONE}/{part_name(part)}.json")


def encode_parquet(table: pa.Table) -> bytes:
    """Encode a table; columns of bytes hold compressed images already and are stored as they are."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=_ROW_GROUP, compression=_compression(table.schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


@lru_cache(maxsize=16)
def _compression(schema: pa.Schema) -> dict[str, str]:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    raw = {entry.name for entry in schema if pa.types.is_binary(entry.type)}
    return {column.path: "NONE" if column.path in raw else "ZSTD" for column in columns}


def _publish(output: Folder, path: str, table: pa.Table) -> None:
    if table.num_rows:
        output.write(path, encode_parquet(table))
    else:
        output.remove(path)


def _unpack(rows: pa.Table, payload: str, schema: pa.Schema) -> pa.Table:
    column = rows[payload].combine_chunks()
    arrays = [
        rows[entry.name] if entry.name in ROW_NAMES else pc.struct_field(column, entry.name)
        for entry in schema
    ]
    return pa.table(arrays, schema=schema)


def _fragments(output: Folder, part: int, columns: list[str] | None = None) -> dict[str, pa.Table]:
    folder = f"{FRAGMENTS}/{part_name(part)}"
    return {
        name: pq.read_table(pa.BufferReader(output.read(f"{folder}/{name}")), columns=columns)
        for name in output.names(folder)
        if name.endswith(".parquet")
    }


def _in_order(fragments: Mapping[str, pa.Table], name: str, schema: pa.Schema, order: list[str]) -> pa.Table:
    tables = [rows.cast(schema) for key, rows in fragments.items() if key.endswith(f".{name}.parquet")]
    rows = pa.concat_tables([schema.empty_table(), *tables])
    place = {image_id: index for index, image_id in enumerate(rows["image_id"].to_pylist())}
    chosen = [place[image_id] for image_id in order if image_id in place]
    return rows.take(np.array(chosen, np.int64)).replace_schema_metadata(schema.metadata)


def _seconds(rows: pa.Table) -> dict[str, float]:
    total: Counter[str] = Counter()
    for entry in rows["seconds"].to_pylist():
        total.update(dict(entry or ()))
    return dict(total)


def _sum_seconds(fragments: Iterable[pa.Table]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for rows in fragments:
        total.update(json.loads((rows.schema.metadata or {}).get(_SECONDS, b"{}")))
    return {name: round(value, 3) for name, value in sorted(total.items())}
