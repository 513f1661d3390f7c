"""From the bytes of an untrusted image file to RGB pixels, or one line that says why not."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from ovss_core.errors import ImageError

FORMATS = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "PPM", "JPEG2000", "TGA", "ICO"),
)
"""What is decoded; formats whose decoders start other programs (EPS) or are scripts (WMF) are left out."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_limit_lock = threading.Lock()


def decode_image(data: bytes, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image file.

    The EXIF orientation is applied, an animation gives its first frame, transparency lies on white, 16 bits a
    channel become 8.

    Args:
        data: The whole file.
        max_pixels: An image with more pixels is refused before it is decoded.

    Raises:
        ImageError: The bytes are empty, truncated, too large or no image that ovss decodes.
    """
    with one_line_errors(), open_image(data, max_pixels) as image:
        image.load()
        return to_rgb(_upright(image))


def read_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Return height and width from the header of an image file, before any rotation.

    Raises:
        ImageError: The header cannot be read, or names more than `max_pixels`.
    """
    with one_line_errors(), open_image(data, max_pixels) as image:
        return image.height, image.width


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Convert a PIL image of any mode to RGB pixels.

    Raises:
        ImageError: A mode that has no RGB counterpart.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        grey = _to_eight_bits(np.asarray(image), image.mode)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return np.asarray(Image.alpha_composite(white, opaque).convert("RGB"))
    try:
        return np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise ImageError(f"colour mode {image.mode} cannot be converted to RGB: {error}") from error


def _to_eight_bits(values: np.ndarray, mode: str) -> UInt8[np.ndarray, "height width"]:
    """Scale 16-bit values by 1/257; stretch wider ones, whose range no header tells, from black to white."""
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    if mode.startswith("I;16") or (mode == "I" and low >= 0 and high <= 65535):
        return np.rint(finite / 257).astype(np.uint8)
    if mode == "F" and low >= 0 and high <= 1:
        return np.rint(finite * 255).astype(np.uint8)
    if low >= 0 and high <= 255:
        return np.rint(finite).astype(np.uint8)
    return np.rint((finite - low) * (255 / (high - low))).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block must not cost the image; Pillow raises many kinds for it
        return image
    transposition = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image if transposition is None else image.transpose(transposition)


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        ImageError: The data is empty, or has more than `max_pixels` pixels; others as Pillow raises them.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        with _pillow_limit(max_pixels):
            image = Image.open(io.BytesIO(data), formats=_available_formats())
    except Image.DecompressionBombError as error:
        raise ImageError(f"more pixels than max_pixels ({max_pixels:,}): {error}") from error
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{image.width} x {image.height} is {image.width * image.height:,} pixels, more than max_pixels "
            f"({max_pixels:,}); raise it to decode this image"
        )
    return image


@cache
def _available_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Lift Pillow's own limit, which is process-wide, only for users who ask for more than it allows."""
    allowed = Image.MAX_IMAGE_PIXELS
    if allowed is None or max_pixels <= 2 * allowed:
        yield
        return
    with _limit_lock:
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = allowed


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn whatever Pillow raises on bad data (there is no common base) into one `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"the data is no image in a format that ovss decodes ({', '.join(FORMATS)})"
        ) from error
    except MemoryError as error:
        raise ImageError("there is not enough memory to decode the image") from error
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ImageError(f"cannot decode: {lines[0] if lines else type(error).__name__}") from error
