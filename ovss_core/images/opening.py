"""From the bytes of an untrusted image file to an image that may be decoded: its kind known, its size within bounds."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from PIL import Image, UnidentifiedImageError

from ovss_core.errors import ImageError
from ovss_core.images.containers import (
    check_hidden_sizes,
    foreign_kind,
    identify,
    missing_bytes,
    unwrap_icon,
)
from ovss_core.images.repair import plain_png, without_metadata

FORMATS = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "PPM", "JPEG2000", "TGA", "ICO"),
)
"""What is decoded; formats whose decoders start other programs (EPS) or are scripts (WMF) are left out."""
_PLUGINS = {
    "HEIF": ("HEIC", "pillow_heif", "pillow-heif"),
    "JXL": ("JPEG XL", "pillow_jxl", "pillow-jxl-plugin"),
}
"""Formats of the extra "formats": what users call them, the module and the package."""

_limit_lock = threading.Lock()


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image without decoding it; metadata that is damaged or too large is left out.

    Raises:
        ImageError: The data is empty, damaged, or has more than `max_pixels` pixels; others as Pillow raises them.
    """
    if not data:
        raise ImageError("the file is empty")
    kind = identify(data)
    if kind == "ICO":
        data = unwrap_icon(data)
        kind = identify(data)
    check_hidden_sizes(data, kind, max_pixels)
    if kind == "PNG":
        data = plain_png(data)
    image = _open_without_metadata(data, kind, max_pixels)
    check_size(image.size, max_pixels)
    return image


def _open_without_metadata(data: bytes, kind: str | None, max_pixels: int) -> Image.Image:
    formats = _available_formats(kind)
    try:
        return _open(data, formats, max_pixels)
    except (ImageError, MemoryError):
        raise
    except Exception:
        for plainer in without_metadata(data, kind):
            try:
                return _open(plainer, formats, max_pixels)
            except Exception:  # the first error is the one that speaks of the file as it is
                continue
        raise


def _open(data: bytes, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    try:
        with _pillow_limit(max_pixels):
            return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageError(f"more pixels than max_pixels ({max_pixels:,}): {error}") from error


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse a picture of more than `max_pixels` pixels; `size` is width and height."""
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{width} x {height} is {width * height:,} pixels, more than max_pixels ({max_pixels:,}); raise it to decode "
            "this image"
        )


def _available_formats(kind: str | None) -> tuple[str, ...]:
    if kind in _PLUGINS:
        _register(kind)
        return (kind,)
    return _installed_formats()


@cache
def _installed_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def _register(kind: str) -> None:
    """Let Pillow know a plugin, when its first file comes.

    Raises:
        ImageError: The package is not installed.
    """
    name, module, package = _PLUGINS[kind]
    try:
        plugin: Any = import_module(module)
    except ImportError as error:
        raise ImageError(f"{name} needs {package}: pip install 'ovss[formats]'") from error
    if kind == "HEIF":
        plugin.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


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
def one_line_errors(data: bytes = b"") -> Iterator[None]:
    """Turn whatever Pillow raises on bad data (there is no common base) into one `ImageError`.

    Args:
        data: The file, to say what it is.
    """
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(_why_unidentified(data)) from error
    except MemoryError as error:
        raise ImageError("there is not enough memory to decode the image") from error
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ImageError(
            f"cannot decode: {_explain(data, lines[0] if lines else type(error).__name__)}"
        ) from error


def _explain(data: bytes, text: str) -> str:
    """Say what is missing of a truncated file, where that is why the decoder gave up."""
    kind = identify(data)
    if missing := missing_bytes(data, kind):
        return f"the {kind} is truncated: {missing:,} bytes are missing at its end"
    if not data or "truncated" not in text.lower():
        return text
    if kind == "JPEG":
        return f"the JPEG is truncated: it ends after {len(data):,} bytes, without its end-of-image marker"
    return f"the {kind or 'file'} is truncated: its pixels end early, after {len(data):,} bytes"


def _why_unidentified(data: bytes) -> str:
    kind, foreign = identify(data), foreign_kind(data)
    if kind in Image.OPEN:
        why = _explain(data, f"the file begins as {kind}, but cannot be read as one{_detail(data, kind)}")
        return f"cannot decode: {why}"
    what = f"{foreign}, no image" if foreign else "no image"
    return f"the data is {what} in a format that ovss decodes ({', '.join(FORMATS)}, HEIC, JPEG XL)"


def _detail(data: bytes, kind: str) -> str:
    """Ask the one decoder what it minds; `Image.open` asks all of them and tells nothing."""
    try:
        Image.OPEN[kind][0](io.BytesIO(data), "")
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f" ({lines[0]})" if lines else ""
    return ""
