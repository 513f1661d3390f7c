"""The report's pictures: which images are worth a look, and each as a thumbnail, its mask, and names on its regions."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from ovss_core.images.decode import decode_image
from pipelines.faults import Failure
from pipelines.label.masks import decode_mask
from pipelines.label.palette import hex_color
from pipelines.label.reader import LabelFiles
from pipelines.label.report.figures import Figures, Place, Sample
from pipelines.run.publish import read_part_rows, read_published
from pipelines.run.schema import IMAGE, LOCATION
from pipelines.storage import Folder

MOST_BYTES = 40_000
"""Bytes of a thumbnail, and of its mask."""
_SIDE = 400
_MAX_PIXELS = 100_000_000
_QUALITIES = (82, 70, 55, 40, 25)
_LEAST_SHARE, _PIECES, _NAMES = 0.004, 3, 14
_LETTER, _LINE = 0.021, 0.06
"""Width of a letter and height of a line, in shares of the picture's longer side."""
_SHOWN = ("image_id", "uri", "mask", "present", "words", "margin", "sure", "ignored", "disagreement")
_SEED = 0


@dataclass(frozen=True)
class Gallery:
    """Some images under a title.

    Attributes:
        name: Of the section, for links.
        title: What they have in common.
        rows: Of labels, each perhaps with a `note`.
    """

    name: str
    title: str
    rows: list[dict[str, Any]]


def choose_galleries(
    output: Folder, labels: LabelFiles, figures: Figures, sample: Sample, count: int
) -> list[Gallery]:
    """Choose the least sure images, those on which hosts disagree most, the rarest classes', and some by chance.

    Args:
        count: At most so many of each kind.
    """
    found = []
    for name, title, column, sign in (
        ("unsure", "Least sure", "margin", 1.0),
        ("disagreeing", "Hosts disagree most", "disagreement", -1.0),
    ):
        values = np.array(sample.columns[column])
        known = np.flatnonzero(~np.isnan(values))
        order = known[np.argsort(sign * values[known], kind="stable")][:count]
        rows = [
            row | {"note": f"{column} {values[place]:.2f}"}
            for place, row in zip(order, _rows(labels, sample, order), strict=True)
        ]
        found.append(Gallery(name, title, rows))
    found.append(Gallery("rare", "Rarest classes", _rare(output, labels, figures, sample, count)))
    chance = np.random.default_rng(_SEED).permutation(len(sample.places))[:count]
    found.append(Gallery("random", "By chance", _rows(labels, sample, np.sort(chance))))
    return [gallery for gallery in found if gallery.rows]


def draw_row(
    labels: LabelFiles, row: dict[str, Any], colors: UInt8[np.ndarray, "classes 3"]
) -> dict[str, Any]:
    """Return what the page needs of one image; with `problem` in the pictures' place where they cannot be had."""
    shown = {
        "image_id": row["image_id"],
        "note": row.get("note"),
        "facts": [
            (name, row[name])
            for name in ("margin", "sure", "ignored", "disagreement")
            if row.get(name) is not None and not str(row.get("note")).startswith(f"{name} ")
        ],
        "present": [entry | {"color": hex_color(colors[entry["index"]])} for entry in row["present"]],
        "problem": None,
    }
    try:
        photograph = Image.fromarray(decode_image(labels.image_of(row), _MAX_PIXELS))
        mask = decode_mask(row["mask"])
    except Exception as error:  # the image is gone, or has changed since; the labels are as good as before
        return shown | {"problem": Failure.of("report", error).reason}
    scale = min(1.0, _SIDE / max(mask.shape))
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    return shown | {
        "width": size[0],
        "height": size[1],
        "photograph": _uri("jpeg", _photograph(photograph.resize(size, Image.Resampling.LANCZOS))),
        "mask": _uri("png", _picture_of_mask(small, colors)),
        "names": place_names(small, row["present"], colors),
    }


def place_names(
    mask: Integer[np.ndarray, "height width"],
    present: Sequence[dict[str, Any]],
    colors: UInt8[np.ndarray, "classes 3"],
) -> list[dict[str, Any]]:
    """Find where on its regions each class's name can stand: where most of the region lies around it.

    Names that would lie on one another are left out, the smaller region's.

    Returns:
        Names with `left` and `top` in percent of the picture, the larger regions first.
    """
    height, width = mask.shape
    pieces = []
    for entry in present[:_NAMES]:
        own = np.pad((mask == entry["index"]).astype(np.uint8), 1)
        _, parts, statistics, _ = cv2.connectedComponentsWithStats(own, connectivity=8)
        areas = statistics[1:, cv2.CC_STAT_AREA]
        depth = cv2.distanceTransform(own, cv2.DIST_L2, 3)
        for part in np.argsort(-areas, kind="stable")[:_PIECES]:
            if areas[part] < _LEAST_SHARE * mask.size:
                break
            own_depth = np.where(parts == part + 1, depth, 0)
            y, x = np.unravel_index(int(own_depth.argmax()), own_depth.shape)
            color = hex_color(colors[entry["index"]])
            pieces.append((int(areas[part]), x - 1, y - 1, entry["name"], color))
    pieces.sort(key=lambda piece: -piece[0])
    taken: list[tuple[float, float, float, float]] = []
    names = []
    side = max(mask.shape)
    for _, column, row, name, color in pieces:
        half, line = (len(name) + 2) * _LETTER * side / 2, _LINE * side / 2
        across, down = _inside(column + 0.5, half, width), _inside(row + 0.5, line, height)
        box = across - half, down - line, across + half, down + line
        if any(box[0] < r and box[2] > l and box[1] < b and box[3] > t for l, t, r, b in taken):  # noqa: E741
            continue
        taken.append(box)
        left, top = round(100 * across / width, 1), round(100 * down / height, 1)
        names.append({"name": name, "color": color, "left": left, "top": top})
    return names


def _inside(place: float, half: float, length: int) -> float:
    """Return where a name's middle stands so that all of it is inside."""
    return float(np.clip(place, min(half, length / 2), max(length - half, length / 2)))


def _rows(labels: LabelFiles, sample: Sample, chosen: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    return [_row(labels, sample.places[int(place)]) for place in chosen]


def _row(labels: LabelFiles, place: Place) -> dict[str, Any]:
    columns = [name for name in (*_SHOWN, IMAGE, *LOCATION) if name in labels.readable]
    return labels.read_group(place.file, place.group, columns)[place.row]


def _rare(
    output: Folder, labels: LabelFiles, figures: Figures, sample: Sample, count: int
) -> list[dict[str, Any]]:
    """Find an image of each of the rarest classes: in the sample, or in the part whose marker counts it."""
    names = labels.class_names
    known = {name: index for index, name in enumerate(names)}
    found: list[dict[str, Any]] = []
    published = None
    for entry in sorted(figures.classes, key=lambda entry: (entry["images"], entry["pixels"]))[:count]:
        index, note = known.get(entry["name"], -1), f"{entry['name']}: {entry['images']:,} images"
        place = next((row for row, classes in enumerate(sample.classes) if index in classes), None)
        if place is not None:
            found.append(_row(labels, sample.places[place]) | {"note": note})
        elif entry["name"] in figures.parts:
            published = published or read_published(output, "labels")
            table = read_part_rows(output, figures.parts[entry["name"]], published)
            words = table["words"].to_pylist()
            row = next((row for row, words in enumerate(words) if entry["name"] in words), None)
            if row is not None:
                found.append(labels.translated(table.slice(row, 1).to_pylist()[0]) | {"note": note})
    return found


def _photograph(picture: Image.Image) -> bytes:
    for quality in _QUALITIES:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= MOST_BYTES:
            break
    return stream.getvalue()


def _picture_of_mask(
    mask: Integer[np.ndarray, "height width"], colors: UInt8[np.ndarray, "classes 3"]
) -> bytes:
    """Draw a mask with a palette; what has no label is transparent. One that is too busy for its bytes is drawn smaller."""
    while True:
        values, places = np.unique(mask, return_inverse=True)
        used = [
            (*(colors[value] if value < len(colors) else (0, 0, 0)), 255 * (value < len(colors)))
            for value in values
        ]
        stream = io.BytesIO()
        if len(values) <= 256:
            picture = Image.fromarray(places.reshape(mask.shape).astype(np.uint8), "P")
            picture.putpalette(np.array([color[:3] for color in used], np.uint8).tobytes())
            picture.save(stream, "PNG", optimize=True, transparency=bytes(color[3] for color in used))
        else:
            Image.fromarray(np.array(used, np.uint8)[places.reshape(mask.shape)], "RGBA").save(stream, "PNG")
        if stream.tell() <= MOST_BYTES or min(mask.shape) < 2:
            return stream.getvalue()
        mask = mask[::2, ::2]


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
