"""The table that an evaluation writes, and the sums over its rows."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ovss_core.evaluation.measurement import Measurement
from pipelines.run.sink import OutputTable
from pipelines.run.summary import add_statistics

_PIXELS = "pixels"
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
_MEANINGS = {
    "image_id": "stable name of the image, unique in the run",
    "uri": "where the image was read",
    "height": "height of mask and image in pixels, orientation applied",
    "width": "width of mask and image in pixels, orientation applied",
    "measurements": "for each variant pixels counted by class (confusion; boundary: in a band along the classes' edges; "
    "oracle: with only the present classes offered), and classes found, wrongly found and missed (predicted_classes: in "
    "the label map; purified_classes: kept by purification); classes that do not occur are left out",
}
MEASUREMENTS = pa.schema(
    [
        pa.field(name, kind, nullable=False, metadata={b"description": _MEANINGS[name].encode()})
        for name, kind in (
            ("image_id", pa.string()),
            ("uri", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("measurements", pa.list_(_MEASUREMENT)),
        )
    ],
    metadata={b"ovss_schema": b"measurements/1"},
)
"""One row an image: for each variant the counts of `Measurement`, classes that do not occur left out."""


def sum_measurements(table: pa.Table) -> dict[str, Any]:
    """Add up the counts of rows of `MEASUREMENTS`: numbers by variant, kind, class index and name of the count.

    Beside the kinds, each variant has all ``pixels`` of the masks, those that do not count included.
    """
    totals: dict[str, Any] = {}
    for row in table.select(["height", "width", "measurements"]).to_pylist():
        for entry in row["measurements"]:
            counts = {**_by_class(entry), _PIXELS: row["height"] * row["width"]}
            add_statistics(totals.setdefault(entry["variant"], {}), counts)
    return totals


def _by_class(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        kind: {str(row["index"]): {name: row[name] for name in _COUNT_NAMES} for row in counts}
        if isinstance(counts, list)
        else counts
        for kind, counts in entry.items()
        if kind != "variant" and counts is not None
    }


def total_measurement(statistics: Mapping[str, Any], classes: int) -> Measurement:
    """Rebuild the sum of one variant from `sum_measurements`."""
    values: dict[str, Any] = {"purified_classes": None, "oracle": None}
    for kind, counts in statistics.items():
        if kind == _PIXELS:
            continue
        by_pixel = kind in ("confusion", "boundary", "oracle")
        values[kind] = [{"index": int(key), **row} for key, row in counts.items()] if by_pixel else counts
    return Measurement.from_dict(values, classes)


def total_pixels(statistics: Mapping[str, Any]) -> int:
    """Return the pixels of all masks of one variant, from `sum_measurements`."""
    return int(statistics.get(_PIXELS, 0))


MEASUREMENT_TABLE = OutputTable("measurements", MEASUREMENTS, sum_measurements)
