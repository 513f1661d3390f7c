"""A page that shows at a glance what a run did: pictures, masks, and the words that were kept and removed.

Files are numbered; names from the input occur only as escaped text.
"""

import colorsys
import io
import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from ovss_core.images.decode import decode_image
from ovss_core.vocabulary import Vocabulary
from pipelines.faults import Failure
from pipelines.label.masks import decode_mask
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
_MAX_PIXELS = 100_000_000
_MAX_BYTES, _FETCH_S = 1 << 28, 60.0
_FAILURES_SHOWN = 50
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:0;background:#f6f6f4;color:#222}
main,header{max-width:1360px;margin:auto;padding:12px 20px}
h1{font-size:24px;margin:12px 0 4px}h2{font-size:16px;margin:0 0 8px;overflow-wrap:anywhere}
article{background:#fff;border:1px solid #ddd;border-radius:8px;padding:14px;margin:14px 0}
.pictures{display:flex;gap:10px;flex-wrap:wrap}figure{margin:0}
figcaption{font-size:12px;color:#666}img{display:block;max-width:420px;height:auto}
.words{margin:8px 0 0;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:6px}
.words li{border-radius:12px;padding:1px 10px;background:#eee}
.words i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;vertical-align:-1px}
.removed li{color:#888;text-decoration:line-through;background:#f4f4f4}
td,th{text-align:left;padding:3px 14px 3px 0;vertical-align:top;overflow-wrap:anywhere}
"""


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
    colors = class_colors(vocabulary)
    articles = []
    for number, (row, data) in enumerate(_choose(output, source, manifest, count)):
        try:
            picture = Image.fromarray(decode_image(data, _MAX_PIXELS))
            drawn = draw(picture, row, colors, vocabulary.background_index)
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
    page = _page(articles, manifest, vocabulary, _failures(output, manifest))
    output.write(f"{PREVIEWS}/index.html", page.encode("utf-8", "replace"))
    return len(articles)


def class_colors(vocabulary: Vocabulary) -> np.ndarray:
    """Give every class a color, uint8 [classes, 3]; the background class is nearly black."""
    colors = np.zeros((len(vocabulary), 3), np.uint8)
    for index in range(len(vocabulary)):
        hue, value = (index * 0.61803398875) % 1.0, (0.95, 0.7, 0.85)[index % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.9, 0.6)[index % 3], value)
        colors[index] = round(255 * red), round(255 * green), round(255 * blue)
    if vocabulary.background_index is not None:
        colors[vocabulary.background_index] = 40
    return colors


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


def _article(number: int, row: dict[str, Any], colors: np.ndarray) -> str:
    figures = "".join(
        f'<figure><img src="{number:05d}-{kind}.png" alt="{kind}"><figcaption>{caption}</figcaption></figure>'
        for kind, caption in (
            ("image", "image"),
            ("mask", "mask"),
            ("overlay", "overlay, with ambiguous regions in the winner's color"),
        )
    )
    present = "".join(
        f'<li><i style="background:rgb({",".join(str(int(value)) for value in colors[entry["index"]])})"></i>'
        f"{escape(entry['name'])} {100 * entry['share']:.1f} %</li>"
        for entry in row["present"]
    )
    removed = _words(row["removed"])
    kept = _words(row["kept"])
    purified = (
        f'<p>kept</p><ul class="words">{kept}</ul><p>removed as redundant</p><ul class="words removed">{removed}</ul>'
        if kept or removed
        else ""
    )
    return (
        f"<article><h2>{escape(row['image_id'])}</h2><div class=pictures>{figures}</div>"
        f'<ul class="words">{present}</ul>{purified}</article>'
    )


def _words(entries: Sequence[dict[str, Any]]) -> str:
    """List words by score; a background that competes unscored has none."""
    scored = [(entry["name"], entry["score"]) for entry in entries]
    known = [(name, None if score is None or math.isnan(score) else score) for name, score in scored]
    ordered = sorted(known, key=lambda entry: -(entry[1] or 0.0))[:60]
    return "".join(
        f"<li>{escape(name)}{'' if score is None else f' {score:.2f}'}</li>" for name, score in ordered
    )


def _page(
    articles: Sequence[str], manifest: Manifest, vocabulary: Vocabulary, failures: Sequence[dict[str, Any]]
) -> str:
    rows = "".join(
        f"<tr><td>{escape(row['image_id'])}<td>{escape(row['stage'])}<td>{escape(row['reason'])}</tr>"
        for row in failures
    )
    failed = f"<article><h2>Failed</h2><table><tr><th>image<th>stage<th>reason</tr>{rows}</table></article>"
    nothing = "" if articles else "<p>No image of this run can be shown.</p>"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>ovss</title><style>{_STYLE}</style><header><h1>Labelled by ovss</h1>"
        f"<p>{len(articles)} of {manifest.images} images; vocabulary {escape(vocabulary.name or 'of this run')} with "
        f"{len(vocabulary)} classes.</p></header><main>{nothing}{''.join(articles)}{failed if rows else ''}</main></html>"
    )


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
