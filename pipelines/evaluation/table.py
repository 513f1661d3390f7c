"""The table that an evaluation writes, and the sums over its rows."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ovss_core.evaluation.measurement import Measurement
from pipelines.sink import OutputTable
from pipelines.summary import add_statistics

_COUNT_NAMES = ("intersection", "predicted", "actual")

_COUNTS = pa.list_(
    pa.struct(
        [
            ("index", pa.int32()),
            ("intersection", pa.int64()),
            ("predicted", pa.int64()),
            ("actual", pa.int64()),
        ]
    )
)
_PRESENCE = pa.struct([("hits", pa.int64()), ("false_alarms", pa.int64()), ("misses", pa.int64())])
_MEASUREMENT = pa.struct(
    [
        ("variant", pa.string()),
        ("confusion", _COUNTS),
        ("boundary", _COUNTS),
        ("predicted_classes", _PRESENCE),
        ("purified_classes", _PRESENCE),
        ("oracle", _COUNTS),
    ]
)
MEASUREMENTS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("measurements", pa.list_(_MEASUREMENT), nullable=False),
    ],
    metadata={b"ovss_schema": b"measurements/1"},
)
"""One row an image: for each variant the counts of `Measurement`, classes that do not occur left out."""


def sum_measurements(table: pa.Table) -> dict[str, Any]:
    """Add up the counts of rows of `MEASUREMENTS`: numbers by variant, kind, class index and name of the count."""
    totals: dict[str, Any] = {}
    for row in table["measurements"].to_pylist():
        for entry in row:
            add_statistics(totals.setdefault(entry.pop("variant"), {}), _by_class(entry))
    return totals


def _by_class(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        kind: {str(row["index"]): {name: row[name] for name in _COUNT_NAMES} for row in counts}
        if isinstance(counts, list)
        else counts
        for kind, counts in entry.items()
        if counts is not None
    }


def total_measurement(statistics: Mapping[str, Any], classes: int) -> Measurement:
    """Rebuild the sum of one variant from `sum_measurements`."""
    values: dict[str, Any] = {"purified_classes": None, "oracle": None}
    for kind, counts in statistics.items():
        by_pixel = kind in ("confusion", "boundary", "oracle")
        values[kind] = [{"index": int(key), **row} for key, row in counts.items()] if by_pixel else counts
    return Measurement.from_dict(values, classes)


MEASUREMENT_TABLE = OutputTable("measurements", MEASUREMENTS, sum_measurements)
