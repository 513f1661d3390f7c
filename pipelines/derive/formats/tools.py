"""Annotation tools: Label Studio's brush labels, and CVAT's masks; both come with a description of the classes."""

import json
from collections.abc import Iterable, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from pipelines.derive.formats.base import Format, Item, bounding_box
from pipelines.derive.units import Outcome
from pipelines.storage import Folder

_RUN_BITS = (3, 4, 8, 16)


class LabelStudio(Format):
    """Tasks with predictions, a file a unit; a brush label a class, background left out."""

    name = "label-studio"
    folders = ("tasks", "label_config.xml")

    def add(self, item: Item, output: Folder, outcome: Outcome) -> dict[str, Any]:
        """Turn an image into a task."""
        height, width = item.mask.shape
        results = [
            {
                "id": f"{item.number}-{index}",
                "type": "brushlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "value": {
                    "format": "rle",
                    "rle": brush_runs(item.mask == index),
                    "brushlabels": [self.classes.names[index]],
                },
            }
            for index in self.classes.foreground
            if (item.mask == index).any()
        ]
        prediction: dict[str, Any] = {"model_version": "ovss", "result": results}
        if item.row.get("margin") is not None:
            prediction["score"] = item.row["margin"]
        data = {"image": item.row["uri"], "image_id": item.row["image_id"], "split": item.split}
        return {"data": data, "predictions": [prediction]}

    def close(self, unit: str, added: Sequence[tuple[Item, Any]], output: Folder, outcome: Outcome) -> None:
        """Write the tasks of a unit."""
        if added:
            tasks = [task for _, task in added]
            outcome.store(output, f"tasks/{unit}.json", json.dumps(tasks, ensure_ascii=False).encode())

    def finish(self, output: Folder, units: Sequence[str]) -> None:
        """Write the labelling interface."""
        colors = self.classes.palette
        labels = "".join(
            f"    <Label value={quoteattr(self.classes.names[index])} "
            f'background="#{bytes(colors[1 + index % 255]).hex()}"/>\n'
            for index in self.classes.foreground
        )
        text = f'<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
        output.write("label_config.xml", text.encode("utf-8", "replace"))


class Cvat(Format):
    """``annotations.xml`` in the format "CVAT for images 1.1", with a mask a class, background left out."""

    name = "cvat"
    folders = ("annotations",)

    def add(self, item: Item, output: Folder, outcome: Outcome) -> dict[str, Any]:
        """Describe the masks of an image."""
        height, width = item.mask.shape
        masks = []
        for index in self.classes.foreground:
            region = item.mask == index
            if region.any():
                left, top, across, down = bounding_box(region)
                runs = run_lengths(region[top : top + down, left : left + across])
                masks.append([index, left, top, across, down, ", ".join(map(str, runs))])
        return {
            "id": item.number,
            "name": item.row["image_id"],
            "width": width,
            "height": height,
            "masks": masks,
        }

    def close(self, unit: str, added: Sequence[tuple[Item, Any]], output: Folder, outcome: Outcome) -> None:
        """Keep the images for the index."""
        self.keep(unit, [image for _, image in added], output, outcome)

    def finish(self, output: Folder, units: Sequence[str]) -> None:
        """Write the images as XML, in several files where there are many."""
        images = [image for piece in self.kept(output, units) for image in piece]
        for number, name in enumerate(self.in_files("annotations/annotations", ".xml", len(images))):
            chosen = images[number * self.images_per_file : (number + 1) * self.images_per_file]
            output.write(name, self._xml(chosen).encode("utf-8", "replace"))

    def _xml(self, images: Iterable[dict[str, Any]]) -> str:
        labels = "".join(
            f"<label><name>{quoteattr(self.classes.names[index])[1:-1]}</name><type>mask</type></label>"
            for index in self.classes.foreground
        )
        lines = [
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><task><labels>{labels}</labels></task></meta>\n"
        ]
        for image in images:
            lines.append(
                f'<image id="{image["id"]}" name={quoteattr(image["name"])} width="{image["width"]}" height="{image["height"]}">\n'
            )
            for index, left, top, across, down, runs in image["masks"]:
                lines.append(
                    f'<mask label={quoteattr(self.classes.names[index])} source="auto" occluded="0" rle="{runs}" left="{left}" '
                    f'top="{top}" width="{across}" height="{down}" z_order="0"></mask>\n'
                )
            lines.append("</image>\n")
        return "".join([*lines, "</annotations>\n"])


def run_lengths(region: np.ndarray) -> list[int]:
    """Return the lengths of runs of false and true in turn, row by row, beginning with false (perhaps 0 long)."""
    flat = region.ravel()
    ends = np.flatnonzero(np.diff(flat, prepend=False, append=~flat[-1:]))
    return [int(length) for length in np.diff(ends, prepend=0)]


def brush_runs(region: np.ndarray) -> list[int]:
    """Encode a region as Label Studio stores a brush: four equal bytes a pixel, 0 or 255, in packed runs of bits.

    The stream: 32 bits for the number of bytes, 5 for the word's size less 1, 4 times 4 for the sizes of runs less 1, and
    for every run a bit 1, two bits that choose its size, its length less 1, and the byte.
    """
    pieces = [f"{4 * region.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _RUN_BITS)]
    for place, pixels in enumerate(run_lengths(region)):
        left = 4 * pixels
        word = "11111111" if place % 2 else "00000000"
        while left:
            choice = next((n for n, bits in enumerate(_RUN_BITS) if left <= 1 << bits), len(_RUN_BITS) - 1)
            length = min(left, 1 << _RUN_BITS[choice])
            pieces.append(f"1{choice:02b}{length - 1:0{_RUN_BITS[choice]}b}{word}")
            left -= length
    bits = np.frombuffer("".join(pieces).encode(), np.uint8) - ord("0")
    return [int(byte) for byte in np.packbits(bits)]
