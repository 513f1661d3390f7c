"""A page that shows at a glance what a run did: pictures, masks, and the words that were kept and removed.

Files are numbered; names from the input occur only as escaped text.
"""

import io
import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from ovss_core.images.decode import decode_image
from ovss_core.vocabulary import Vocabulary
from ovss_core.vocabulary_files import is_background
from pipelines.faults import Failure
from pipelines.label.masks import decode_mask
from pipelines.label.options import NO_VOCABULARY
from pipelines.label.palette import BACKGROUND, class_colors, distinct_colors
from pipelines.label.table import VOCABULARY
from pipelines.pages import render
from pipelines.run.manifest_files import Manifest, read_part, shard_of
from pipelines.run.publish import read_part_rows, read_published
from pipelines.run.record import PREVIEWS
from pipelines.run.shards import images_of_shard
from pipelines.run.sink import FAILED, finished_file
from pipelines.run.summary import read_markers
from pipelines.sources import Source, WebDatasetSource
from pipelines.storage import Folder

_LOG = logging.getLogger(__name__)
_SIDE = 420
_FAINT, _STRONG = 70, 150
_NO_COLOR = 128
_MAX_PIXELS = 100_000_000
_MAX_BYTES, _FETCH_S = 1 << 28, 60.0
_FAILURES_SHOWN = 50
_WORDS_SHOWN = 60
_PICTURES = {
    "image": "image",
    "mask": "mask",
    "overlay": "overlay, with ambiguous regions in the winner's color",
}


def write_previews(
    output: Folder, source: Source, manifest: Manifest, vocabulary: Vocabulary, count: int
) -> int:
    """Write pictures of up to `count` labelled images, spread over the corpus, and ``_previews/index.html``.

    The run is finished before: whatever goes wrong here is a line of the log, never an error.

    Returns:
        How many images are shown.
    """
    try:
        return _write_page(output, source, manifest, vocabulary, count)
    except Exception as error:
        _LOG.warning(
            "the previews could not be written: %s; the labels are complete",
            Failure.of(PREVIEWS, error).reason,
        )
        return 0


def _write_page(
    output: Folder, source: Source, manifest: Manifest, vocabulary: Vocabulary, count: int
) -> int:
    palette, numbers = class_colors(vocabulary), dict[str, int]()
    articles, own_words = [], False
    for number, (row, data) in enumerate(_choose(output, source, manifest, count)):
        colors, background = palette, vocabulary.background_index
        own_words = row.get(VOCABULARY) is not None
        if own_words:
            colors, background = _own_colors(row, numbers)
        try:
            picture = Image.fromarray(decode_image(data, _MAX_PIXELS))
            drawn = draw(picture, row, colors, background)
            article = _article(number, row, colors)
        except (
            Exception
        ) as error:  # it was decoded before: the file has changed, or is too large for a preview
            reason = Failure.of(PREVIEWS, error).reason
            _LOG.warning("no preview of %s: %s", row.get("image_id"), reason)
            continue
        for kind, image in drawn.items():
            output.write(f"{PREVIEWS}/{number:05d}-{kind}.png", _png(image))
        articles.append(article)
    page = _page(articles, manifest, vocabulary, _failures(output, manifest), own_words)
    output.write(f"{PREVIEWS}/index.html", page.encode("utf-8", "replace"))
    return len(articles)


def _own_colors(row: dict[str, Any], numbers: dict[str, int]) -> tuple[np.ndarray, int | None]:
    """Give the words of a row with its own vocabulary colors, the same on the whole page; the background is dark.

    Args:
        row: Of the table ``labels``.
        numbers: The words that have a color, by its number; takes those that are new in a mask.

    Returns:
        Colors by value in the mask, uint8 [classes, 3], gray where a word is in no mask; the background's value.
    """
    words = row[VOCABULARY]
    background = next((index for index, name in enumerate(words) if is_background(name)), None)
    colors = np.full((len(words), 3), _NO_COLOR, np.uint8)
    distinct = distinct_colors()
    for entry in row["present"]:
        number = numbers.setdefault(entry["name"], len(numbers))
        colors[entry["index"]] = distinct[number % len(distinct)]
    if background is not None:
        colors[background] = BACKGROUND
    return colors, background


def draw(
    picture: Image.Image, row: dict[str, Any], colors: np.ndarray, background: int | None = None
) -> dict[str, Image.Image]:
    """Draw a labelled image: as it is, its mask in colors, and both with the ambiguous regions."""
    classes = decode_mask(row["mask"])
    unused = np.zeros(
        (1, 3), np.uint8
    )  # pixels of regions that did not agree have a value behind all classes
    mask = Image.fromarray(np.concatenate([colors, unused])[np.minimum(classes, len(colors))])
    scale = min(1.0, _SIDE / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    scene, flat = picture.resize(size), mask.resize(size, Image.Resampling.NEAREST)
    strength = np.where(classes == background, _FAINT, _STRONG).astype(np.uint8)
    overlay = Image.composite(flat, scene, Image.fromarray(strength).resize(size, Image.Resampling.NEAREST))
    pen = ImageDraw.Draw(overlay)
    for group in row["groups"]:
        for box in group["boxes"]:
            winner = box["winner"]
            color = "white" if winner is None else tuple(int(value) for value in colors[winner])
            corners = [box["x0"] * scale, box["y0"] * scale, box["x1"] * scale - 1, box["y1"] * scale - 1]
            if corners[0] <= corners[2] and corners[1] <= corners[3]:
                pen.rectangle(corners, outline=color, width=2)
    return {"image": scene, "mask": flat, "overlay": overlay}


def _choose(
    output: Folder, source: Source, manifest: Manifest, count: int
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield label rows with the bytes of their images, the same number from parts spread over the run."""
    fetcher = source.fetcher(_MAX_BYTES, _FETCH_S)
    parts = [marker["part"] for marker in read_markers(output, manifest) if marker["labelled"]]
    chosen = sorted({round(place) for place in np.linspace(0, len(parts) - 1, min(len(parts), count))})
    left, published = count, read_published(output, "labels")
    with ThreadPoolExecutor(4) as threads:
        for position, place in enumerate(chosen):
            rows = read_part_rows(output, parts[place], published)
            wanted = min(rows.num_rows, -(-left // (len(chosen) - position)))
            spread = sorted({round(row) for row in np.linspace(0, max(rows.num_rows - 1, 0), wanted)})
            picked = rows.take(np.array(spread, np.int64)).to_pylist()
            left -= len(picked)
            listed = read_part(output, parts[place])
            names = pa.array([row["image_id"] for row in picked], pa.string())
            records = listed.filter(pc.is_in(listed["image_id"], names)).to_pylist()
            placed = [record for record in records if not _is_streamed(record)]
            fetched = fetcher.fetch(placed, threads)
            data: dict[str, Any] = {
                record["image_id"]: found for record, found in zip(placed, fetched, strict=True)
            }
            if streamed := [record["image_id"] for record in records if _is_streamed(record)]:
                data |= _stream(source, manifest, parts[place], streamed)
            yield from (
                (row, found) for row in picked if isinstance(found := data.get(row["image_id"]), bytes)
            )


def _is_streamed(record: dict[str, Any]) -> bool:
    """Say whether an image's bytes are no range of its shard's file, which is compressed or has holes."""
    return record["container"] == "tar" and record["offset"] is None


def _stream(source: Source, manifest: Manifest, part: str, image_ids: Sequence[str]) -> dict[str, bytes]:
    number = shard_of(part)
    if number is None or not isinstance(source, WebDatasetSource):
        return {}
    shard = manifest.containers[number]
    try:
        return images_of_shard(source.uri, shard, source.fields, image_ids, _MAX_BYTES)
    except (OSError, ValueError, pa.ArrowException) as error:
        _LOG.warning("no preview of %s: %s", shard, Failure.of(PREVIEWS, error).reason)
        return {}


def _read(output: Folder, name: str) -> pa.Table:
    if not output.exists(name):
        return pa.table({"image_id": pa.array([], pa.string())})
    return pq.read_table(pa.BufferReader(output.read(name)))


def _failures(output: Folder, manifest: Manifest) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for part in manifest.parts:
        if len(shown) >= _FAILURES_SHOWN:
            break
        shown += _read(output, finished_file(FAILED, part)).to_pylist()
    return shown[:_FAILURES_SHOWN]


def _article(number: int, row: dict[str, Any], colors: np.ndarray) -> dict[str, Any]:
    """Return what the page says of one image."""
    present = [entry | {"color": colors[entry["index"]].tolist()} for entry in row["present"]]
    words = {name: _words(row[name]) for name in ("kept", "removed")}
    return {"number": number, "image_id": row["image_id"], "present": present, **words}


def _words(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """List words by score; a background that competes unscored has none."""
    scores = [entry["score"] for entry in entries]
    known = [
        {"name": entry["name"], "score": None if score is None or math.isnan(score) else score}
        for entry, score in zip(entries, scores, strict=True)
    ]
    return sorted(known, key=lambda entry: -(entry["score"] or 0.0))[:_WORDS_SHOWN]


def _page(
    articles: Sequence[dict[str, Any]],
    manifest: Manifest,
    vocabulary: Vocabulary,
    failures: Sequence[dict[str, Any]],
    own_words: bool,
) -> str:
    return render(
        "previews.html",
        articles=articles,
        images=manifest.images,
        vocabulary=vocabulary.name or "of this run",
        classes=0 if vocabulary == NO_VOCABULARY else len(vocabulary),
        own_words=own_words,
        pictures=_PICTURES.items(),
        failures=failures,
    )


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
