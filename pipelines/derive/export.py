"""Labels in other people's formats."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from itertools import count
from typing import Any

import numpy as np
from PIL import Image

from ovss_core.errors import ConfigError, ImageError
from pipelines.derive.formats.base import PIECES, Classes, Format, Item, safe_name, upright
from pipelines.derive.formats.coco import CocoInstances, CocoPanoptic
from pipelines.derive.formats.folders import MmSegmentation, YoloSegmentation
from pipelines.derive.formats.packed import HuggingFace, WebDataset
from pipelines.derive.formats.tools import Cvat, LabelStudio
from pipelines.derive.options import ExportOptions
from pipelines.derive.units import Outcome, Row, Unit, stable_share
from pipelines.label.masks import decode_mask
from pipelines.label.reader import LabelFiles
from pipelines.run.schema import IMAGE, LOCATION
from pipelines.storage import Folder

FORMATS: dict[str, type[Format]] = {
    kind.name: kind
    for kind in (
        CocoInstances,
        CocoPanoptic,
        MmSegmentation,
        YoloSegmentation,
        HuggingFace,
        WebDataset,
        LabelStudio,
        Cvat,
    )
}
_NEEDED = {"coco-instances": "pycocotools"}
_SPLIT_SEED = 1


@dataclass(frozen=True)
class Export:
    """The job of ``ovss export``.

    Attributes:
        options: What is wanted.
        classes: Those of the labels, once they are known.
    """

    options: ExportOptions
    classes: Classes = field(default_factory=lambda: Classes((), 255))
    groups: int | None = 4

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the format needs."""
        read = ("image_id", "uri", "mask", "words", "margin")
        return (*read, IMAGE, *LOCATION) if self._kind.with_images else read

    @property
    def folders(self) -> tuple[str, ...]:
        """What the format writes."""
        return (*self._kind.folders, PIECES)

    @property
    def _kind(self) -> type[Format]:
        return FORMATS[self.options.format]

    def identity(self) -> dict[str, Any]:
        """Return what decides the export."""
        return {"job": "export", "export": asdict(self.options)}

    def check(self, labels: LabelFiles) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: A library is missing.
        """
        needed = _NEEDED.get(self.options.format)
        if needed:
            try:
                import_module(needed)
            except ImportError as error:
                raise ConfigError(
                    f"--format {self.options.format} needs {needed}; pip install 'ovss[export]' and try again"
                ) from error

    def prepare(self, labels: LabelFiles, output: Folder) -> "Export":
        """Take up the classes."""
        return replace(self, classes=Classes(labels.class_names, labels.ignore_index))

    def work(self, labels: LabelFiles, unit: Unit, rows: Iterator[Row], output: Folder) -> Outcome:
        """Write the images of a unit."""
        outcome = Outcome()
        form = self._kind(self.classes, self.options.images_per_file)
        numbers = count(unit.first)

        def write(row: Row) -> tuple[Item, Any]:
            item = self._item(labels, row, next(numbers))
            return item, form.add(item, output, outcome)

        added = [found for _, found in outcome.each(rows, write)]
        form.close(unit.name, added, output, outcome)
        outcome.written = len(added)
        splits = {split: sum(item.split == split for item, _ in added) for split in ("train", "val")}
        outcome.statistics = {"splits": splits}
        return outcome

    def finish(self, labels: LabelFiles, output: Folder, markers: Sequence[Mapping[str, Any]]) -> None:
        """Write the index of the whole."""
        form = self._kind(self.classes, self.options.images_per_file)
        form.finish(output, [f"unit-{number:05d}" for number in range(len(markers))])

    def _item(self, labels: LabelFiles, row: Row, number: int) -> Item:
        mask = decode_mask(row["mask"])
        split = "val" if stable_share(row["image_id"], _SPLIT_SEED) < self.options.val_share else "train"
        image = upright(labels.image_of(row)) if self._kind.with_images else None
        if image is not None and not _fits(image[0], mask):
            raise ImageError("the image has another size than its mask: it has changed since it was labelled")
        return Item(number, safe_name(row["image_id"]), split, row, mask, image)


def _fits(data: bytes, mask: np.ndarray) -> bool:
    with Image.open(io.BytesIO(data)) as picture:
        return bool((picture.height, picture.width) == mask.shape)
