"""What people changed: masks that came back from an annotation tool, compared with the labels that they began from."""

import io
import json
import posixpath
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ovss_core.errors import ConfigError, ImageError, StorageError
from pipelines.derive.formats.base import Classes, safe_name
from pipelines.faults import Failure
from pipelines.label.masks import decode_mask
from pipelines.label.reader import LabelFiles
from pipelines.storage import Folder, walk

_RUNS = 4
Read = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Corrections:
    """The masks that came back.

    Attributes:
        masks: What reads each, by the image's id or by the name of its file.
        partial: They say nothing where a class was left out or no label was: what is not annotated is background.
    """

    masks: Mapping[str, Read]
    partial: bool = False

    def of(self, image_id: str) -> Read | None:
        """Return what reads the mask of an image; None for one that did not come back."""
        stem = posixpath.splitext(image_id)[0]
        return next(
            (self.masks[key] for key in (image_id, safe_name(image_id), stem) if key in self.masks), None
        )


def read_corrections(folder: Folder, classes: Classes) -> Corrections:
    """Find out what came back: a folder of PNG masks, an export of Label Studio (.json), or one of CVAT (.xml).

    Args:
        folder: Searched below as well for PNG masks.
        classes: Of the labels.

    Raises:
        StorageError: There is nothing of the kind.
        ConfigError: A class in it is none of the labels'.
    """
    listed = walk(folder.filesystem, folder.path, lambda place: not posixpath.basename(place).startswith("_"))
    names = [name for name, _ in listed]
    tasks = [name for name in names if name.endswith(".json")]
    documents = [name for name in names if name.endswith(".xml")]
    pictures = [name for name in names if name.lower().endswith(".png")]
    if pictures:
        found = {posixpath.splitext(name)[0]: partial(_picture, folder, name) for name in pictures}
        return Corrections({**{posixpath.basename(name): read for name, read in found.items()}, **found})
    if documents:
        return Corrections(dict(_cvat(folder, documents, classes)), partial=True)
    if tasks:
        return Corrections(dict(_label_studio(folder, tasks, classes)), partial=True)
    raise StorageError(
        f"no mask in {folder.public_uri}; give a folder of .png masks, or of an export as .json or .xml"
    )


def compare(labels: LabelFiles, corrections: Corrections) -> dict[str, Any]:
    """Count what became of the labels' pixels.

    Returns:
        Images compared, pixels and how many changed, and for each class pixels before and after, those that stayed, the
        intersection over union of both, and to which classes it went, most first; and why images could not be compared.
    """
    count, ignore = len(labels.class_names), labels.ignore_index
    table = np.zeros((count + 1, count + 1), np.int64)
    images, failures = 0, {}
    for row in labels.rows(["image_id", "mask"]):
        read = corrections.of(row["image_id"])
        if read is None:
            continue
        try:
            before, after = decode_mask(row["mask"]), read()
            _require_fit(before, after, count, ignore)
        except (ImageError, StorageError, OSError, ValueError, KeyError) as error:
            failures[row["image_id"]] = Failure.of("compare", error).reason
            continue
        images += 1
        pairs = np.minimum(before, count).astype(np.int64) * (count + 1) + np.minimum(after, count)
        if corrections.partial:  # what had no label could not come back as none
            pairs = pairs[before != ignore]
        table += np.bincount(pairs.ravel(), minlength=table.size).reshape(table.shape)
    return _report(labels.class_names, table, images, failures)


def _require_fit(before: np.ndarray, after: np.ndarray, count: int, ignore: int) -> None:
    if before.shape != after.shape:
        raise ImageError(
            f"the mask is {after.shape[1]} x {after.shape[0]} pixels, the label {before.shape[1]} x {before.shape[0]}"
        )
    unknown = (after >= count) & (after != ignore)
    if unknown.any():
        raise ImageError(f"the mask has the value {int(after[unknown][0])}, which is no class")


def _report(
    names: tuple[str, ...], table: np.ndarray, images: int, failures: Mapping[str, str]
) -> dict[str, Any]:
    shown = [*names, "no label"]
    before, after, stayed = table.sum(1), table.sum(0), table.diagonal()
    entries = {}
    for index, name in enumerate(shown):
        union = int(before[index] + after[index] - stayed[index])
        if union:
            became = sorted(
                (
                    (shown[to], int(table[index, to]))
                    for to in range(len(shown))
                    if to != index and table[index, to]
                ),
                key=lambda entry: -entry[1],
            )
            entries[name] = {
                "before": int(before[index]),
                "after": int(after[index]),
                "stayed": int(stayed[index]),
                "iou": float(stayed[index] / union),
                "became": dict(became),
            }
    total = int(table.sum())
    changed = total - int(stayed.sum())
    return {
        "images": images,
        "pixels": total,
        "changed": changed,
        "changed_share": changed / total if total else 0.0,
        "classes": entries,
        "failures": dict(failures),
    }


def _picture(folder: Folder, name: str) -> np.ndarray:
    return decode_indices(folder.read(name))


def decode_indices(data: bytes) -> np.ndarray:
    """Return the indices of a PNG mask, with a palette or without, 8 or 16 bits.

    Raises:
        ImageError: It has colors, and no indices.
    """
    with Image.open(io.BytesIO(data)) as picture:
        if picture.mode not in ("L", "P", "I;16", "I;16B", "I"):
            raise ImageError(
                f"the mask is a picture of mode {picture.mode}, which holds colors and no indices"
            )
        indices: np.ndarray = np.asarray(picture).astype(np.int64)
        return indices


def _index(classes: Classes, name: str) -> int:
    if name not in classes.names:
        raise ConfigError(
            f"the masks have a class {name!r}, which is none of the labels': {', '.join(classes.names[:20])}"
        )
    return classes.names.index(name)


def _painted(size: tuple[int, int], regions: Sequence[tuple[int, Read]], classes: Classes) -> np.ndarray:
    """Paint regions over what is not annotated: the class called background, or no label."""
    background = next(
        (place for place, name in enumerate(classes.names) if place not in classes.foreground), None
    )
    mask = np.full(size, classes.ignore if background is None else background, np.int64)
    for index, region in regions:
        mask[region()] = index
    return mask


def _label_studio(folder: Folder, names: list[str], classes: Classes) -> Iterator[tuple[str, Read]]:
    """Read the last annotation of each task, or its prediction where nobody annotated it."""
    for name in names:
        for task in json.loads(folder.read(name)):
            drafts = task.get("annotations") or task.get("predictions") or [{"result": []}]
            regions, size = [], None
            for result in drafts[-1]["result"]:
                if result.get("type") == "brushlabels":
                    size = result["original_height"], result["original_width"]
                    label = _index(classes, result["value"]["brushlabels"][0])
                    regions.append((label, partial(brush_region, result["value"]["rle"], size)))
            if size is not None:
                yield str(task["data"]["image_id"]), partial(_painted, size, regions, classes)


def brush_region(values: list[int], size: tuple[int, int]) -> np.ndarray:
    """Read a brush of Label Studio, bool [height, width]: packed runs and literals of four bytes a pixel.

    Raises:
        ImageError: It is cut short.
    """
    bits = np.unpackbits(np.array(values, np.uint8))
    powers = 1 << np.arange(32, dtype=np.int64)[::-1]
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ImageError("the brush ends before its last pixel")
        return int(bits[place - count : place] @ powers[32 - count :])

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(_RUNS)]
    pieces: list[np.ndarray] = []
    left = total
    while left > 0:
        run, bit_count = take(1), sizes[take(2)]
        length = take(bit_count) + 1
        if run:
            pieces.append(np.full(length, take(word), np.uint8))
        else:
            pieces.append(np.array([take(word) for _ in range(length)], np.uint8))
        left -= length
    found: np.ndarray = np.concatenate(pieces)[:total].reshape(*size, -1)[..., -1] > 0
    return found


def _cvat(folder: Folder, names: list[str], classes: Classes) -> Iterator[tuple[str, Read]]:
    for name in names:
        try:
            root = ElementTree.fromstring(folder.read(name))
        except ElementTree.ParseError as error:
            raise StorageError(f"{name} of {folder.public_uri} is no XML: {error}") from error
        for image in root.iterfind("image"):
            size = int(image.get("height", "0")), int(image.get("width", "0"))
            regions = [
                (_index(classes, entry.get("label", "")), partial(_cvat_region, dict(entry.attrib), size))
                for entry in image.iterfind("mask")
            ]
            yield str(image.get("name")), partial(_painted, size, regions, classes)


def _cvat_region(mask: Mapping[str, str], size: tuple[int, int]) -> np.ndarray:
    left, top, width, height = (int(mask[name]) for name in ("left", "top", "width", "height"))
    runs = [int(run) for run in mask["rle"].split(",")]
    region = np.zeros(size, bool)
    region[top : top + height, left : left + width] = np.repeat(np.arange(len(runs)) % 2, runs).reshape(
        height, width
    )
    return region


def describe(report: Mapping[str, Any]) -> str:
    """Return the report as text: a line a class, those that changed most first."""
    lines = [
        f"{report['images']:,} images compared; {report['changed']:,} of {report['pixels']:,} pixels changed "
        f"({100 * report['changed_share']:.2f} %)"
    ]
    classes = sorted(report["classes"].items(), key=lambda entry: entry[1]["iou"])
    width = max((len(name) for name, _ in classes), default=0)
    for name, entry in classes:
        became = ", ".join(f"{to} {count:,}" for to, count in list(entry["became"].items())[:3])
        lines.append(
            f"{name:<{width}}  IoU {100 * entry['iou']:6.2f}  {entry['before']:>12,} before  {entry['after']:>12,} after"
            f"{f'  became {became}' if became else ''}"
        )
    lines += [f"{image_id}: {reason}" for image_id, reason in list(report["failures"].items())[:20]]
    return "\n".join(lines)
