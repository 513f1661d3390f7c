"""COCO: instances, which are connected parts of classes as run lengths, and panoptic maps, whose segments are classes."""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipelines.derive.formats.base import SPLITS, Format, Item, bounding_box, class_parts
from pipelines.derive.units import Outcome
from pipelines.storage import Folder

_PARTS_PER_IMAGE = 1 << 20


class _Coco(Format):
    """What both have: images, categories from 1 on, and one JSON file a split, or several for many images."""

    stem: str

    def categories(self) -> list[dict[str, Any]]:
        return [{"id": index + 1, "name": self.classes.names[index]} for index in self.classes.foreground]

    def close(self, unit: str, added: Sequence[tuple[Item, Any]], output: Folder, outcome: Outcome) -> None:
        """Keep images and annotations for the index."""
        pieces: dict[str, Any] = {split: {"images": [], "annotations": []} for split in SPLITS}
        for item, annotations in added:
            height, width = item.mask.shape
            image = {
                "id": item.number + 1,
                "file_name": item.row["image_id"],
                "height": height,
                "width": width,
                "coco_url": item.row["uri"],
            }
            pieces[item.split]["images"].append(image)
            pieces[item.split]["annotations"].extend(annotations)
        self.keep(unit, pieces, output, outcome)

    def finish(self, output: Folder, units: Sequence[str]) -> None:
        """Put the pieces of each split together."""
        for split in SPLITS:
            whole: list[dict[str, Any]] = [piece[split] for piece in self.kept(output, units)]
            images = [image for piece in whole for image in piece["images"]]
            if not images:
                continue
            by_image: dict[int, list[Any]] = {}
            for piece in whole:
                for annotation in piece["annotations"]:
                    by_image.setdefault(annotation["image_id"], []).append(annotation)
            names = self.in_files(f"annotations/{self.stem}_{split}", ".json", len(images))
            for number, name in enumerate(names):
                chosen = images[number * self.images_per_file : (number + 1) * self.images_per_file]
                content = {
                    "info": {"description": "pseudo-labels by ovss"},
                    "categories": self.categories(),
                    "images": chosen,
                    "annotations": [entry for image in chosen for entry in by_image.get(image["id"], ())],
                }
                output.write(name, json.dumps(content, ensure_ascii=False).encode())


class CocoInstances(_Coco):
    """One annotation a connected part of a class, as compressed run lengths; background is left out."""

    name = "coco-instances"
    folders = ("annotations",)
    stem = "instances"

    def add(self, item: Item, output: Folder, outcome: Outcome) -> list[dict[str, Any]]:
        """Encode the parts of every class."""
        from pycocotools import mask as run_lengths

        found: list[dict[str, Any]] = []
        for index in self.classes.foreground:
            for part in class_parts(item.mask, index):
                encoded = run_lengths.encode(np.asfortranarray(part.astype(np.uint8)))
                found.append(
                    {
                        "id": item.number * _PARTS_PER_IMAGE + len(found) + 1,
                        "image_id": item.number + 1,
                        "category_id": index + 1,
                        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                        "area": int(part.sum()),
                        "bbox": bounding_box(part),
                        "iscrowd": 0,
                    }
                )
        return found


class CocoPanoptic(_Coco):
    """One segment a class, background as well; pixels without a label have the id 0."""

    name = "coco-panoptic"
    folders = ("annotations",)
    stem = "panoptic"

    def categories(self) -> list[dict[str, Any]]:
        """List all classes as stuff."""
        return [
            {"id": index + 1, "name": name, "isthing": 0} for index, name in enumerate(self.classes.names)
        ]

    def add(self, item: Item, output: Folder, outcome: Outcome) -> list[dict[str, Any]]:
        """Write the map of ids, and describe its segments."""
        ids = np.where(item.mask == self.classes.ignore, 0, item.mask.astype(np.int64) + 1)
        colors = np.stack([ids & 255, ids >> 8, np.zeros_like(ids)], -1).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(colors).save(stream, "PNG")
        outcome.store(output, f"annotations/panoptic_{item.split}/{item.name}.png", stream.getvalue())
        segments = [
            {
                "id": int(segment),
                "category_id": int(segment),
                "area": int((ids == segment).sum()),
                "bbox": bounding_box(ids == segment),
                "iscrowd": 0,
            }
            for segment in np.unique(ids)
            if segment
        ]
        return [{"image_id": item.number + 1, "file_name": f"{item.name}.png", "segments_info": segments}]
