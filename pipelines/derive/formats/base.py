"""What a format of an export is: files for each image, files for each unit of images, and an index of the whole."""

import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import cv2
import numpy as np
from PIL import Image

from ovss_core.images.decode import decode_image
from pipelines.derive.units import Outcome
from pipelines.storage import Folder

SPLITS = ("train", "val")
PIECES = "_pieces"
"""Folder of what each unit hands to the index of the whole."""
_KEPT = {"JPEG": ".jpg", "PNG": ".png"}
_ORIENTATION = 0x0112
_MAX_PIXELS = 100_000_000
_NAME_LENGTH = 120


@dataclass(frozen=True)
class Classes:
    """The classes of an export.

    Attributes:
        names: By value in the mask.
        ignore: Value of pixels without a label.
    """

    names: tuple[str, ...]
    ignore: int

    @property
    def foreground(self) -> tuple[int, ...]:
        """The classes that are things to be found: all but one called background."""
        return tuple(index for index, name in enumerate(self.names) if name.lower() != "background")

    @property
    def palette(self) -> np.ndarray:
        """A color for each value of an 8-bit mask, uint8 [256, 3]: the VOC rule of spread bits."""
        values = np.arange(256)
        colors = np.zeros((256, 3), np.uint8)
        for bit in range(8):
            for channel in range(3):
                colors[:, channel] |= (((values >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
        return colors


@dataclass(frozen=True)
class Item:
    """One image of an export.

    Attributes:
        number: Its place among all rows of the labels, from 0.
        name: A file's name without ending that no other image has.
        split: "train" or "val".
        row: Its row of labels.
        mask: Class indices [height, width].
        image: The image's file, upright, with its ending; None where the format does without.
    """

    number: int
    name: str
    split: str
    row: dict[str, Any]
    mask: np.ndarray
    image: tuple[bytes, str] | None


class Format(ABC):
    """Writes labels in one format; a format is one file in this package: subclass and set `name`.

    Attributes:
        name: As the flag says it.
        with_images: The images' files belong to it.
        folders: What it writes at the top of the output.
    """

    name: ClassVar[str]
    with_images: ClassVar[bool] = False
    folders: ClassVar[tuple[str, ...]]

    def __init__(self, classes: Classes, images_per_file: int) -> None:
        self.classes = classes
        self.images_per_file = images_per_file

    @abstractmethod
    def add(self, item: Item, output: Folder, outcome: Outcome) -> Any:
        """Write the files of one image, and return what `close` needs of it."""

    def close(self, unit: str, added: Sequence[tuple[Item, Any]], output: Folder, outcome: Outcome) -> None:
        """Write the files of a unit, such as ``unit-00003``; nothing, unless a format overrides this."""
        return

    def finish(self, output: Folder, units: Sequence[str]) -> None:
        """Write the index of the whole; nothing, unless a format overrides this."""
        return

    def copy_image(self, folder: str, item: Item, output: Folder, outcome: Outcome) -> str:
        """Store an item's image in a folder, and return its name there."""
        data, ending = item.image or (b"", "")
        outcome.store(output, f"{folder}/{item.name}{ending}", data)
        return f"{item.name}{ending}"

    def keep(self, unit: str, values: Any, output: Folder, outcome: Outcome) -> None:
        """Keep what the index needs of a unit."""
        outcome.store(output, f"{PIECES}/{unit}.json", json.dumps(values, ensure_ascii=False).encode())

    def kept(self, output: Folder, units: Sequence[str]) -> Iterator[Any]:
        """Yield what was kept, unit after unit."""
        for unit in units:
            yield json.loads(output.read(f"{PIECES}/{unit}.json"))

    def in_files(self, stem: str, ending: str, images: int) -> list[str]:
        """Return names for so many images: one file, or numbered ones where there are many."""
        count = max(1, -(-images // self.images_per_file))
        return [f"{stem}{ending}"] if count == 1 else [f"{stem}-{n:05d}{ending}" for n in range(count)]


def safe_name(image_id: str) -> str:
    """Turn an id into a file's name without ending; one that had to be changed gets digits of its hash."""
    stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", image_id)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:_NAME_LENGTH]
    digest = blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()
    return plain if plain == stem else f"{plain}-{digest}"


def upright(data: bytes) -> tuple[bytes, str]:
    """Return an image's file with its ending: as it is, or as PNG where readers would turn it or not know it.

    Raises:
        ImageError: It is no picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            ending = _KEPT.get(picture.format or "")
            if ending and picture.getexif().get(_ORIENTATION, 1) == 1 and picture.mode in ("RGB", "L"):
                return data, ending
    except (OSError, SyntaxError, ValueError):
        pass  # decode_image says what is wrong
    stream = io.BytesIO()
    Image.fromarray(decode_image(data, _MAX_PIXELS)).save(stream, "PNG")
    return stream.getvalue(), ".png"


def class_parts(mask: np.ndarray, index: int) -> Iterator[np.ndarray]:
    """Yield the connected parts of a class, bool [height, width]; corners connect."""
    count, parts = cv2.connectedComponents((mask == index).astype(np.uint8), connectivity=8)
    for part in range(1, count):
        yield parts == part


def bounding_box(part: np.ndarray) -> tuple[int, int, int, int]:
    """Return x, y, width and height of the true pixels."""
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)
