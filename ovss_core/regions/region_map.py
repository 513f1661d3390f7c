"""A region map: which region of an image each pixel lies in, and what of it lies on the patches of a window."""

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageFile

from ovss_core.errors import ImageError
from ovss_core.images.opening import one_line_errors, open_image
from ovss_core.images.windows import PatchGrid, WindowLayout

_INDEX_MODES = {"L", "P", "I;16", "I;16B", "I;16L", "I", "1"}
_STRETCHED = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies the values of grayscale images of 2 and 4 bits by, so that white is 255."""
LARGEST = np.iinfo(np.int32).max


@dataclass(frozen=True)
class RegionMap:
    """Regions of one image, disjoint, as any mask generator made them.

    Attributes:
        ids: Number of the region that each pixel lies in, int32 at the image's own size; 0 is no region.
    """

    ids: Int[np.ndarray, "height width"]

    @classmethod
    def of_array(cls, values: np.ndarray) -> "RegionMap":
        """Take a table of numbers.

        Raises:
            ImageError: It is no table of whole numbers from 0 that fit int32.
        """
        if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "iub":
            raise ImageError(
                f"regions of type {values.dtype} and shape {values.shape} are no region map; give whole numbers "
                "[height, width], 0 where no region is"
            )
        if values.dtype.kind != "b" and (int(values.min()) < 0 or int(values.max()) > LARGEST):
            raise ImageError(
                f"regions are numbered from {values.min()} to {values.max()}; give numbers from 0 (no region) to {LARGEST}"
            )
        return cls(np.ascontiguousarray(values, np.int32))

    @classmethod
    def decode(cls, data: bytes, max_pixels: int) -> "RegionMap":
        """Decode an index PNG: one channel of numbers, or three as COCO's panoptic files have them, R + 256 G + 65536 B.

        Raises:
            ImageError: No image, a broken or too large one, or one whose channels are no numbers.
        """
        try:
            with one_line_errors(data), open_image(data, max_pixels) as image:
                if image.mode not in {*_INDEX_MODES, "RGB"}:
                    raise ImageError(  # noqa: TRY301
                        f"it has mode {image.mode}; give a PNG with one channel of region numbers, or three (R + 256 G + "
                        "65536 B)"
                    )
                stretch = _stretch(image)
                values = np.array(image)
        except ImageError as error:
            raise ImageError(f"the region map cannot be read: {error}") from error
        if values.ndim == 3:
            values = values.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
        return cls.of_array(values // stretch if stretch > 1 else values)

    def to_png(self) -> bytes:
        """Return the numbers as an index PNG of 8 or 16 bits, for `decode`.

        Raises:
            ImageError: A region's number is above 65,535.
        """
        most = int(self.ids.max())
        if most > np.iinfo(np.uint16).max:
            raise ImageError(f"{most} regions do not fit an index PNG; give numbers up to 65535")
        buffer = io.BytesIO()
        kind = np.uint8 if most <= np.iinfo(np.uint8).max else np.uint16
        Image.fromarray(self.ids.astype(kind)).save(buffer, "PNG")
        return buffer.getvalue()

    def to_bytes(self) -> bytes:
        """Return the numbers, compressed, for `from_bytes`: rows as their difference from the one above."""
        rows = np.diff(self.ids, axis=0, prepend=np.int32(0))
        return zlib.compress(rows.astype("<i4").tobytes(), 1)

    @classmethod
    def from_bytes(cls, data: bytes, size: tuple[int, int]) -> "RegionMap":
        """Rebuild a map of an image of `size` (height, width) from `to_bytes`."""
        rows = np.frombuffer(zlib.decompress(data), "<i4").reshape(size)
        return cls(rows.cumsum(0, dtype=np.int32))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        height, width = self.ids.shape
        return height, width

    def require_size(self, size: tuple[int, int]) -> "RegionMap":
        """Return the map if it belongs to an image of `size` (height, width).

        Raises:
            ImageError: It does not.
        """
        if self.size != size:
            raise ImageError(
                f"the region map has {self.size[0]} x {self.size[1]} pixels, the image {size[0]} x {size[1]} (upright); "
                "make regions of the picture that is labelled"
            )
        return self

    @cached_property
    def numbered(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the regions that are there (with 0, if so), ascending, and each pixel's place among them."""
        largest = int(self.ids.max())
        if largest < max(1 << 16, self.ids.size):  # counting is faster than sorting
            names = np.flatnonzero(np.bincount(self.ids.reshape(-1), minlength=largest + 1))
            table = np.zeros(largest + 1, np.int32)
            table[names] = np.arange(len(names), dtype=np.int32)
            return names, table[self.ids]
        names, place = np.unique(self.ids, return_inverse=True)
        return names, place.reshape(self.ids.shape)

    def on_patches(self, layout: WindowLayout, cells: PatchGrid) -> Int[np.ndarray, "windows patches"]:
        """Read the regions at the upper left pixel of every patch of every window, as the released CorrCLIP does.

        Args:
            layout: Where the windows lie in the resized image.
            cells: The patches.

        Returns:
            Numbers of regions, patches row by row.
        """
        rows, columns = cells.of(layout.window_size)
        height, width = layout.image_size
        found = []
        for top, left in layout.origins:
            down = (top + np.arange(rows) * cells.patch_size) * self.size[0] // height
            across = (left + np.arange(columns) * cells.patch_size) * self.size[1] // width
            found.append(self.ids[down[:, None], across].reshape(-1))
        return np.stack(found)


def count_in_windows(tables: Sequence[np.ndarray]) -> tuple[Int[np.ndarray, "windows patches"], int]:
    """Number the regions of each window anew: 0 stays, the others count from 1 in their order.

    Args:
        tables: Of several images, each [windows, patches].

    Returns:
        All windows' tables, int64, and how many regions the window with the most has.
    """
    counted, most = [], 0
    for window in np.concatenate(tables):
        names, place = np.unique(window, return_inverse=True)
        shifted = place.reshape(-1) + (0 if names[0] == 0 else 1)
        counted.append(shifted)
        most = max(most, int(shifted.max()))
    return np.stack(counted).astype(np.int64), most


def _stretch(image: Image.Image) -> int:
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return _STRETCHED.get(str(tiles[0].args), 1) if tiles else 1
