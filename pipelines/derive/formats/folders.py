"""Folders of images and labels side by side: MMSegmentation's masks, and the polygons of YOLO."""

import io
import json
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import yaml
from PIL import Image

from pipelines.derive.formats.base import SPLITS, Format, Item
from pipelines.derive.units import Outcome
from pipelines.label.masks import encode_mask
from pipelines.storage import Folder


class MmSegmentation(Format):
    """``img_dir`` and ``ann_dir`` with a folder a split; masks have a palette, above 255 classes 16 bits."""

    name = "mmseg"
    with_images = True
    folders = ("img_dir", "ann_dir", "metainfo.json")

    def add(self, item: Item, output: Folder, outcome: Outcome) -> None:
        """Write image and mask."""
        self.copy_image(f"img_dir/{item.split}", item, output, outcome)
        outcome.store(output, f"ann_dir/{item.split}/{item.name}.png", self._mask(item.mask))

    def _mask(self, mask: np.ndarray) -> bytes:
        if mask.dtype != np.uint8:
            return encode_mask(mask)
        picture = Image.fromarray(mask)
        picture.putpalette(self.classes.palette.tobytes())
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()

    def finish(self, output: Folder, units: Sequence[str]) -> None:
        """Write what MMSegmentation calls metainfo: classes and palette."""
        colors = self.classes.palette[np.arange(len(self.classes.names)) % 255]
        content = {
            "classes": self.classes.names,
            "palette": colors.tolist(),
            "ignore_index": self.classes.ignore,
            "reduce_zero_label": False,
        }
        output.write("metainfo.json", json.dumps(content, ensure_ascii=False, indent=2).encode())


class YoloSegmentation(Format):
    """``images`` and ``labels`` with a folder a split, and ``data.yaml``; a line a connected part, background left out."""

    name = "yolo-seg"
    with_images = True
    folders = ("images", "labels", "data.yaml")

    def add(self, item: Item, output: Folder, outcome: Outcome) -> None:
        """Write image and polygons."""
        self.copy_image(f"images/{item.split}", item, output, outcome)
        height, width = item.mask.shape
        lines = []
        for place, index in enumerate(self.classes.foreground):
            for polygon in polygons(item.mask == index):
                # inside its pixel where readers that cut down and those that round find it
                points = (polygon + 0.25) / (width, height)
                lines.append(f"{place} " + " ".join(f"{value:.7g}" for value in points.ravel()))
        outcome.store(
            output, f"labels/{item.split}/{item.name}.txt", "".join(f"{line}\n" for line in lines).encode()
        )

    def finish(self, output: Folder, units: Sequence[str]) -> None:
        """Write the file that names folders and classes."""
        content: dict[str, Any] = {split: f"images/{split}" for split in SPLITS}
        content["names"] = {
            place: self.classes.names[index] for place, index in enumerate(self.classes.foreground)
        }
        output.write("data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def polygons(region: np.ndarray) -> list[np.ndarray]:
    """Turn a region into closed polygons through the middles of its border's pixels, [points, 2] as x, y.

    A hole joins the polygon around it by a bridge that is walked there and back, so that filling leaves it out.

    Args:
        region: bool [height, width].
    """
    contours, hierarchy = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    found = []
    for number, (_, _, child, parent) in enumerate(hierarchy[0]):
        if parent != -1:
            continue
        outline = contours[number][:, 0]
        while child != -1:
            outline = _bridged(outline, contours[child][:, 0])
            child = hierarchy[0][child][0]
        if len(outline) < 3:  # readers want three corners; a line is walked there and back
            outline = (
                np.concatenate([outline, outline[::-1]])[:4]
                if len(outline) == 2
                else np.repeat(outline, 3, 0)
            )
        found.append(outline)
    return found


def _bridged(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Join a hole to an outline where they come nearest."""
    distances = np.abs(outline[:, None].astype(np.int64) - hole[None]).sum(2)
    here, there = np.unravel_index(distances.argmin(), distances.shape)
    around = np.concatenate([hole[there:], hole[: there + 1]])
    return np.concatenate([outline[: here + 1], around, outline[here:]])
