"""From rows to finished parts: fragments as work comes in, one file a manifest part when all of it is there.

A part's rows are merged in the order of the manifest; only then its marker under ``_done/`` is written, and only after
that its fragments go. So whatever moment the run is killed at, the files that exist are whole, and say what is missing. A
marker holds the rows and bytes of its files, so that one that is cut or gone is found (`pipelines.run.verify`). At the end
of a run parts are put together in files for readers (`pipelines.run.publish`).
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.run.fragments import FRAGMENTS, encode_parquet, read_fragments, write_fragment
from pipelines.run.manifest_files import read_part
from pipelines.run.publish import part_file, read_published, take_back
from pipelines.run.schema import FAILURES, IMAGE, LOCATION, ORIGINAL, ROW_NAMES
from pipelines.run.side_by_side import in_order
from pipelines.run.state_files import DamagedFileError, read_json, read_table, write_json
from pipelines.sources.carried import CarriedColumns
from pipelines.storage import Folder

DONE = "_done"
FAILED = "_failures"
_MERGE_THREADS = 4
_LOG = logging.getLogger(__name__)
_MARKER: dict[str, type | tuple[type, ...]] = {
    "part": (str, int),
    "images": int,
    "labelled": int,
    "failed": int,
    "seconds": dict,
    "statistics": dict,
}
"""What a marker holds at least, and of which types."""
_HOLDERS = {
    "container": ("tar", "parquet"),
    **dict.fromkeys(("member", "offset", "length"), ("tar",)),
    **dict.fromkeys(("row_group", "row"), ("parquet",)),
}
"""The containers in whose records each column of `LOCATION` says where an image lies."""

Statistics = dict[str, Any]
WRITTEN = pa.schema(
    [
        ("part", pa.string()),
        ("labelled", pa.int64()),
        ("failed", pa.int64()),
        ("part_images", pa.int64()),
        ("reasons", pa.string()),
    ]
)
"""What the write stage reports to the driver; `part_images` where a row of the batch brought it, and in `reasons` how many
images failed by "stage: error type", as a JSON object: of Arrow's maps Ray makes one thing or another."""


@dataclass(frozen=True)
class OutputTable:
    """The table that a job writes beside its failures.

    Attributes:
        name: Folder of the files, such as "labels".
        schema: Columns; the first are those of `ROW_NAMES`.
        summarize: Turns the rows of a part into statistics, JSON-ready.
        carried: Columns at the end of the schema that come from the source when a part is finished.
    """

    name: str
    schema: pa.Schema
    summarize: Callable[[pa.Table], Statistics]
    carried: CarriedColumns | None = None

    @property
    def schemas(self) -> dict[str, pa.Schema]:
        """The schemas of both kinds of fragments by the name of their folder: what the manifest knows comes later."""
        late = [*LOCATION, *(entry.name for entry in self.carried.fields)] if self.carried else LOCATION
        stored = [entry for entry in self.schema if entry.name not in late]
        return {self.name: pa.schema(stored, self.schema.metadata), FAILED: FAILURES}

    @property
    def keeps_images(self) -> bool:
        """Whether the images' own bytes are stored."""
        return IMAGE in self.schema.names


class WriteFragments:
    """Store finished rows as fragments, and report how many there are.

    `write` takes tables with the columns ``part, image_id, uri, part_images, failure, seconds, result``; exactly one of
    `failure` and `result` is set. Returns a table of `WRITTEN`.
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
            labelled = _unpack(rows.filter(pc.invert(failed)), "result", self.table.schemas[self.table.name])
            failures = _unpack(rows.filter(failed), "failure", FAILURES)
            write_fragment(self.output, part, {self.table.name: labelled, FAILED: failures}, _seconds(rows))
            counts = {"labelled": labelled.num_rows, "failed": failures.num_rows}
            about = {
                "part_images": pc.max(rows["part_images"]).as_py(),
                "reasons": json.dumps(_reasons(failures)),
            }
            written.append({"part": part, **counts, **about})
        return pa.Table.from_pylist(written, schema=WRITTEN)


def merge_part(output_uri: str, part: str, table: OutputTable) -> dict[str, Any]:
    """Turn a part's fragments into its finished files and its marker.

    Returns:
        The marker's content, or ``{"part": part, "missing": n}`` if rows are still to come (nothing is written).

    Raises:
        DamagedFileError: The part's list of images cannot be read.
    """
    output = Folder(output_uri)
    listed = read_part(output, part, None if _is_located(table.schema) else ["image_id"])
    order = listed["image_id"].to_pylist()
    fragments = list(read_fragments(output, part, table.schemas))
    labelled = _in_order(fragments, table.name, table.schemas[table.name], order)
    got = set(labelled["image_id"].to_pylist())
    failed = _in_order(fragments, FAILED, FAILURES, [image_id for image_id in order if image_id not in got])
    strangers = {i for _, rows, _ in fragments for i in rows["image_id"].to_pylist()} - set(order)
    if strangers:
        _LOG.warning(
            "%s/%s holds %d images that are not of this part, such as %r; they are passed over",
            FRAGMENTS,
            part,
            len(strangers),
            min(strangers),
        )
    missing = len(order) - labelled.num_rows - failed.num_rows
    if missing:
        return {"part": part, "missing": missing}
    if _is_located(table.schema):
        labelled = _located(labelled, listed, table)
    files = {
        name: {"rows": rows.num_rows, "bytes": _publish(output, finished_file(name, part), rows)}
        for name, rows in ((table.name, labelled), (FAILED, failed))
    }
    marker = {
        "part": part,
        "images": len(order),
        "labelled": labelled.num_rows,
        "failed": failed.num_rows,
        "files": files,
        "seconds": _sum_seconds(seconds for _, _, seconds in fragments),
        "statistics": table.summarize(labelled),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(output, marker_file(part), marker)
    output.remove_folder(f"{FRAGMENTS}/{part}")
    return marker


def merge_parts(output_uri: str, parts: Sequence[str], table: OutputTable) -> None:
    """Merge several parts, a few side by side where rows are small: a storage answers many at a time; see `merge_part`."""
    threads = 1 if table.keeps_images else _MERGE_THREADS
    for _ in in_order(lambda part: merge_part(output_uri, part, table), parts, threads):
        pass


def marker_file(part: str) -> str:
    """Return the path of a part's marker."""
    return f"{DONE}/{part}.json"


def finished_file(table: str, part: str) -> str:
    """Return the path of a part's finished rows: the failures', or the table's while they are not published."""
    return f"{FAILED}/{part}.pq" if table == FAILED else part_file(part)


def read_marker(output: Folder, part: str) -> dict[str, Any]:
    """Read a part's marker.

    Raises:
        DamagedFileError: It is gone, cut, or something else.
    """
    marker = read_json(output, marker_file(part), _MARKER)
    if (
        marker["images"] != marker["labelled"] + marker["failed"]
        or min(marker["labelled"], marker["failed"]) < 0
    ):
        raise DamagedFileError(output, marker_file(part), "its counts do not add up")
    return marker


def reopen_parts(
    output: Folder, parts: Sequence[str], table: OutputTable, keep_failures: bool = False
) -> None:
    """Take back the markers of finished parts, so that what their files do not hold is done (again).

    Published files with their rows are taken apart, which leaves the other parts there finished. The rows go back to
    the fragments then, as far as they can be read; the parts' files stay until they are finished anew.

    Args:
        keep_failures: Do not try the failed images again.
    """
    if not parts:
        return
    published = read_published(output, table.name)
    for name in sorted({published.places[part] for part in parts if part in published.places}):
        take_back(output, table.schema, name, published.files[name])
    for part in parts:
        _reopen(output, part, table, keep_failures)


def _reopen(output: Folder, part: str, table: OutputTable, keep_failures: bool) -> None:
    try:
        seconds = read_marker(output, part)["seconds"]
    except DamagedFileError:
        seconds = {}
    tables = {}
    for name, schema in table.schemas.items():
        try:
            if name == table.name or keep_failures:
                tables[name] = read_table(output, finished_file(name, part), schema, grown=True)
        except DamagedFileError:  # gone where there are no such rows; whoever checks the marker says more
            continue
    output.remove_folder(f"{FRAGMENTS}/{part}")
    write_fragment(output, part, tables, seconds)
    output.remove(marker_file(part))


def _publish(output: Folder, path: str, table: pa.Table) -> int:
    """Write a finished file, or remove the one there is where no row belongs into it; return its bytes."""
    if not table.num_rows:
        output.remove(path)
        return 0
    data = encode_parquet(table)
    output.write(path, data)
    return len(data)


def _is_located(schema: pa.Schema) -> bool:
    return all(name in schema.names for name in LOCATION)


def _located(rows: pa.Table, listed: pa.Table, table: OutputTable) -> pa.Table:
    """Add where each image lies in a larger file, from the part's list, and what is carried of the source."""
    schema = table.schema
    place = {image_id: row for row, image_id in enumerate(listed["image_id"].to_pylist())}
    mine = listed.take(np.array([place[image_id] for image_id in rows["image_id"].to_pylist()], np.int64))
    for name in LOCATION:
        inside = pc.is_in(mine["container"], pa.array(_HOLDERS[name]))
        rows = rows.append_column(schema.field(name), pc.if_else(inside, mine[name], None))
    if table.carried is not None:
        for entry, values in zip(table.carried.fields, table.carried.read(mine.to_pylist()), strict=True):
            rows = rows.append_column(entry, values)
    return rows.select(schema.names).cast(schema)


def _unpack(rows: pa.Table, payload: str, schema: pa.Schema) -> pa.Table:
    column = rows[payload].combine_chunks()
    beside = {IMAGE: ORIGINAL, **{name: name for name in ROW_NAMES}}
    arrays = [
        rows[beside[entry.name]] if entry.name in beside else pc.struct_field(column, entry.name)
        for entry in schema
    ]
    return pa.table(arrays, schema=schema)


def _in_order(
    fragments: Iterable[tuple[str, pa.Table, Any]], name: str, schema: pa.Schema, order: list[str]
) -> pa.Table:
    tables = [rows.replace_schema_metadata(schema.metadata) for kind, rows, _ in fragments if kind == name]
    rows = pa.concat_tables([schema.empty_table(), *tables])
    place = {image_id: index for index, image_id in enumerate(rows["image_id"].to_pylist())}
    chosen = [place[image_id] for image_id in order if image_id in place]
    return rows.take(np.array(chosen, np.int64)).replace_schema_metadata(schema.metadata)


def _reasons(failures: pa.Table) -> dict[str, int]:
    kinds = zip(failures["stage"].to_pylist(), failures["error_type"].to_pylist(), strict=True)
    return dict(Counter(f"{stage}: {kind}" for stage, kind in kinds))


def _seconds(rows: pa.Table) -> dict[str, float]:
    total: Counter[str] = Counter()
    for entry in rows["seconds"].to_pylist():
        total.update(dict(entry or ()))
    return dict(total)


def _sum_seconds(fragments: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for seconds in fragments:
        total.update(seconds)
    return {name: round(value, 3) for name, value in sorted(total.items())}
