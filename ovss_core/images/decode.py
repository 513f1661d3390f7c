"""From the bytes of an untrusted image file to RGB pixels, or one line that says why not."""

import sys
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ovss_core.errors import ImageError
from ovss_core.images.gray_levels import lies_in_twelve_bits, to_color_levels, to_gray_levels
from ovss_core.images.opening import check_size, one_line_errors, open_image
from ovss_core.images.plain_jpeg import PlainJpeg

_ORIENTATION_TAG = 0x0112
_SWAPPED = {
    "RGB;16L": "RGB;16B",
    "RGB;16B": "RGB;16L",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
}
"""Pillow keeps the high bytes of 16-bit colors; read in the other byte order, these are the low ones."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class EncodedImage:
    """An image file whose header has been read, and whose pixels are still to be decoded.

    Args:
        data: The whole file.
        max_pixels: An image with more pixels is refused before it is decoded.

    Attributes:
        height, width: Before any rotation.

    Raises:
        ImageError: The bytes are empty, too large or no image that ovss decodes, or the header cannot be read.
    """

    def __init__(self, data: bytes, max_pixels: int) -> None:
        self._data, self._max_pixels = data, max_pixels
        self._plain = PlainJpeg.of(data, max_pixels)
        self._image: Image.Image | None = None
        if self._plain is not None:
            self.height, self.width = self._plain.height, self._plain.width
        else:
            self._image = self._open()
            self.width, self.height = self._image.size

    def _open(self) -> Image.Image:
        with one_line_errors(self._data):
            return open_image(self._data, self._max_pixels)

    def pixels(self) -> UInt8[np.ndarray, "height width 3"]:
        """Decode the image, once; see `decode_image`.

        Raises:
            ImageError: The file is truncated or damaged.
        """
        if self._plain is not None and (pixels := self._plain.pixels()) is not None:
            transposition = _TRANSPOSITIONS.get(self._plain.orientation)
            return pixels if transposition is None else _turned(pixels, transposition)
        with one_line_errors(self._data), self._image or self._open() as image:
            swapped = _swapped_bytes(image)
            image.load()
            if swapped is not None and lies_in_twelve_bits(image):
                return self._deep_colors(image, swapped)
            return to_rgb(_upright(image))

    def _deep_colors(self, image: Image.Image, swapped: list[Any]) -> np.ndarray:
        """Decode the low bytes too, where the high ones that Pillow keeps hold hardly anything."""
        with open_image(self._data, self._max_pixels) as low:
            low.tile = swapped  # type: ignore[attr-defined]
            low.load()
            return to_color_levels(image, low)


def decode_image(data: bytes, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image file.

    The EXIF orientation is applied, an animation gives its first frame, transparency lies on white, wider samples
    become 8 bits as `to_gray_levels` says.

    Args:
        data: The whole file.
        max_pixels: An image with more pixels is refused before it is decoded.

    Raises:
        ImageError: The bytes are empty, truncated, damaged, too large or no image that ovss decodes.
    """
    return EncodedImage(data, max_pixels).pixels()


def picture_to_rgb(image: Image.Image, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """Return the pixels of a PIL image as `decode_image` gives those of its file.

    It is turned upright by its EXIF orientation (``ImageOps.exif_transpose`` removes that; ``rotate`` and ``resize``
    keep it), and an animation gives its first frame. The image itself stays at the frame it was at.

    Raises:
        ImageError: More than `max_pixels`, or the file behind the image is truncated or damaged.
    """
    with one_line_errors():
        check_size(image.size, max_pixels)
        if _swapped_bytes(image) is not None and (file := getattr(image, "fp", None)) is not None:
            place = file.tell()
            file.seek(0)
            data = file.read()
            file.seek(place)
            return decode_image(data, max_pixels)
        frame = image.tell()
        if frame == 0 or image.format in (
            "HEIF",
            "MPO",
        ):  # their frames are pictures, of which one is the main one
            image.load()
            return to_rgb(_upright(image))
        image.seek(0)
        try:
            image.load()
            return to_rgb(_upright(image)).copy()
        finally:
            image.seek(frame)


def _swapped_bytes(image: Image.Image) -> list[Any] | None:
    """Return how to read the low bytes of a TIFF of 16-bit colors that is not loaded yet; None for other images."""
    tiles = getattr(image, "tile", None)
    if image.format != "TIFF" or not tiles or not isinstance(tiles[0].args, tuple):
        return None
    if any(tile.args[0] not in _SWAPPED for tile in tiles):
        return None
    return [tile._replace(args=(_SWAPPED[tile.args[0]], *tile.args[1:])) for tile in tiles]


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Convert a PIL image of any mode to RGB pixels.

    Raises:
        ImageError: A mode that has no RGB counterpart.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return np.repeat(to_gray_levels(image)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return np.asarray(Image.alpha_composite(white, opaque).convert("RGB"))
    try:
        return np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise ImageError(f"color mode {image.mode} cannot be converted to RGB: {error}") from error


def _turned(pixels: np.ndarray, transposition: Image.Transpose) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).transpose(transposition))


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "JXL" and not getattr(image, "jpeg", False):  # its decoder has turned it already
        return image
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block must not cost the image; Pillow raises many kinds for it
        return image
    transposition = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image if transposition is None else image.transpose(transposition)
