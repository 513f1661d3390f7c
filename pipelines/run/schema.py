"""The tables that a run leaves behind; any Parquet reader understands them.

Every file says in its metadata (key ``ovss_schema``) which table and version it is. The version goes up when a
column changes its meaning or goes; new columns alone keep it.
"""

import pyarrow as pa

from ovss_core.engine.facts import FACT_COLUMNS, FACTS

_PIXEL = pa.int32()


def _schema(name: str, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={b"ovss_schema": name.encode()})


def _documented(name: str, kind: pa.DataType, nullable: bool, meaning: str) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={b"description": meaning.encode()})


_SCORED = pa.list_(pa.struct([("index", pa.int32()), ("name", pa.string()), ("score", pa.float32())]))
_WORDS = pa.list_(pa.string())
_PRESENT = pa.list_(
    pa.struct(
        [
            ("index", pa.int32()),
            ("name", pa.string()),
            ("pixels", pa.int64()),
            ("share", pa.float32()),
            ("confidence", pa.float32()),
        ]
    )
)
_BOX = pa.struct([("x0", _PIXEL), ("y0", _PIXEL), ("x1", _PIXEL), ("y1", _PIXEL), ("winner", pa.int32())])
_GROUPS = pa.list_(pa.struct([("classes", pa.list_(pa.int32())), ("boxes", pa.list_(_BOX))]))

_REGIONS = pa.list_(
    pa.struct(
        [("region", pa.int32()), ("pixels", pa.int64()), ("winner", pa.int32()), ("agreement", pa.float32())]
    )
)

LABELS = _schema(
    "labels/2",
    [
        _documented("image_id", pa.string(), False, "stable name of the image, unique in the run"),
        _documented("uri", pa.string(), False, "where the image was read"),
        _documented("height", _PIXEL, False, "height of mask and image in pixels, orientation applied"),
        _documented("width", _PIXEL, False, "width of mask and image in pixels, orientation applied"),
        _documented(
            "mask",
            pa.binary(),
            False,
            "PNG with one channel; a pixel's value is its class's position in the vocabulary, or 255 (65535 above 255 "
            "classes) where it has no label; 8 bits up to 255 classes, 16 above",
        ),
        _documented("words", _WORDS, False, "names of the classes in the mask, by pixels descending"),
        _documented(
            "vocabulary",
            _WORDS,
            True,
            "with `--words-column` or `--caption-column`: the words that this image was offered; the mask's values and every "
            "`index` of this row are positions in this list",
        ),
        _documented(
            "present",
            _PRESENT,
            False,
            "classes in the mask, by pixels descending: share of the image's pixels in [0, 1], mean confidence "
            "over the class's pixels in [0, 1]",
        ),
        _documented(
            "score", pa.float32(), True, "mean score of the winning class over all pixels, in [0, 1]"
        ),
        _documented(
            "margin", pa.float32(), True, "mean of how far that is ahead of the second class's, in [0, 1]"
        ),
        _documented("sure", pa.float32(), True, "share of pixels whose margin is at least 0.2, in [0, 1]"),
        _documented("ignored", pa.float32(), True, "share of pixels without a label, in [0, 1]"),
        _documented(
            "confidence",
            pa.binary(),
            True,
            "with `--confidence pixel`: PNG with one channel of 8 bits, each pixel's margin times 255",
        ),
        _documented("kept", _SCORED, False, "vocabulary after redundancy purification, with scores"),
        _documented("removed", _SCORED, False, "classes removed as redundant, with scores"),
        _documented(
            "groups",
            _GROUPS,
            False,
            "classes that claimed the same region; each box in pixels of the image, end exclusive, with the class "
            "that won it (null: nobody)",
        ),
        *(_documented(fact.name, pa.from_numpy_dtype(fact.dtype), True, fact.meaning) for fact in FACTS),
        _documented(
            "regions",
            _REGIONS,
            True,
            "how each region of the image's region map voted: its number there, its pixels, the class that most of them "
            "had, and their share of the region in (0, 1]; null without a vote",
        ),
        _documented(
            "container",
            pa.string(),
            True,
            "tar or parquet where the file at `uri` holds the image among others",
        ),
        _documented("member", pa.string(), True, "name of the image's file in a tar"),
        _documented("offset", pa.int64(), True, "where its bytes begin in a tar that is not compressed"),
        _documented("length", pa.int64(), True, "how many bytes of a tar they are"),
        _documented("row_group", pa.int32(), True, "row group of a Parquet file that holds it"),
        _documented("row", pa.int64(), True, "its row in that row group, from 0"),
        _documented("image", pa.binary(), True, "with `--embed-images`: the image's file, as it was read"),
    ],
)

FAILURES = _schema(
    "failures/1",
    [
        _documented("image_id", pa.string(), False, "stable name of the image, unique in the run"),
        _documented("uri", pa.string(), False, "where the image was to be read"),
        _documented(
            "stage", pa.string(), False, "stage that gave up: list, read, or the name of an actor stage"
        ),
        _documented("error_type", pa.string(), False, "class of the error, or WorkerCrash"),
        _documented("reason", pa.string(), False, "one line that says what was wrong"),
    ],
)

FAILURE = pa.struct([("stage", pa.string()), ("error_type", pa.string()), ("reason", pa.string())])
"""Type of the column ``failure`` between stages; null while all is well."""

SECONDS = pa.map_(pa.string(), pa.float64())
"""Type of the column ``seconds`` between stages: what the batch whose first row this is took, by step."""

PROPOSAL = pa.struct(
    [
        (name, pa.binary())
        for name in (
            *("size", "resized", "scored", "maps", "guide", "kept", "phrases", "scores", "group_sizes"),
            *(
                "members",
                "region_group",
                "region_window",
                "region_corners",
                "crops",
                "region_map",
                "own_words",
                *FACT_COLUMNS,
            ),
        )
    ]
)
"""Type of the column ``proposal`` between the two labelling stages: a row of `Proposals.to_rows`, whose `COLUMNS` say
what the bytes are; this module stays free of torch. Maps travel compressed (`pipelines.label.proposals`). In `own_words` is
what the image was offered, where images bring words along (`pipelines.label.own_words`)."""

CARRIER = pa.schema(
    [
        ("part", pa.string()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("annotation", pa.string()),
        ("image", pa.binary()),
        ("failure", FAILURE),
        ("seconds", SECONDS),
        ("part_images", pa.int64()),
    ]
)
"""What the read stage hands to the first actor stage (`part_images`, how many the part has, comes with the last image
of a part that was listed while it was read); each actor stage replaces the payload by its own."""

WORDS_CARRIER = CARRIER.append(pa.field("own_words", pa.list_(pa.string())))
"""The same where images bring words along: the words of each, or its captions; null where it has none."""


def result_type(schema: pa.Schema) -> pa.StructType:
    """Return the type of the column ``result``, which the last actor stage fills for one output table."""
    beside = (*ROW_NAMES, *LOCATION, IMAGE)
    return pa.struct([pa.field(entry.name, entry.type) for entry in schema if entry.name not in beside])


ROW_NAMES = ("image_id", "uri")
"""Columns that every output table begins with; they come from the carrier, not from the result."""

LOCATION = ("container", "member", "offset", "length", "row_group", "row")
"""Columns that say where in a larger file an image lies; they come from the manifest when a part is finished."""

IMAGE, ORIGINAL = "image", "original"
"""The column of the images' own bytes, and its name between stages, beside the payload that each stage replaces."""
