"""From samples wider than 8 bits to gray levels: what is white is what the file says, else what its values say."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ovss_core.errors import ImageError

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_SMALLEST, _LARGEST = (340, 280), (341, 281)
_NO_DATA = 42113
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_DEPTHS = (255, 1023, 4095)
"""White of 8, 10 and 12 bits, which cameras and microscopes store in 16 without saying so."""
_ENDLESS = 1e38
_FILLERS = (-9999.0, -99999.0, -32768.0, -32767.0)
"""What instruments and maps write where they measured nothing, often without the tag that says so."""
_STRIP_ROWS = 256


class _Levels(NamedTuple):
    """The samples that become black and white."""

    black: float
    white: float


def to_gray_levels(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """Bring a loaded image of one wide channel (Pillow's modes I;16, I and F) to 8 bits.

    A TIFF's own words decide first (SMinSampleValue and SMaxSampleValue, MaxSampleValue, BitsPerSample), if they
    hold its values. Without them integers of 16 bits are taken as 8, 10 or 12 bits where a TIFF, or an image of
    unknown origin, holds no larger value; floats in [0, 1] and in [0, 255] as they are; everything else is stretched
    from its smallest to its largest value. Values that are not finite, the TIFF's no-data value (GDAL's tag) and the
    usual ones for "nothing measured" decide nothing and become black. A constant image becomes one gray.

    Raises:
        ImageError: Nothing was measured anywhere.
    """
    tags = getattr(image, "tag_v2", None) or {}
    values = np.asarray(image)
    unsigned = _number(tags, _SAMPLE_FORMAT) in (None, _UNSIGNED)
    if image.mode == "I" and _number(tags, _BITS) == 32 and unsigned:
        values = values.view(np.uint32)
    measured = _measured(values, _no_data(tags))
    if measured is not None and not measured.any():
        raise ImageError("no pixel of the picture holds a value: all are NaN, infinite or the no-data value")
    counted = values if measured is None else values[measured]
    smallest, largest = float(np.min(counted)), float(np.max(counted))
    levels = _declared(tags, image.mode, smallest, largest) or _guessed(image, smallest, largest)
    return _scaled(values, levels, measured, inverted=_number(tags, _PHOTOMETRIC) == _WHITE_IS_ZERO)


def lies_in_twelve_bits(high_bytes: Image.Image) -> bool:
    """Say whether a TIFF of 16-bit colors, of which Pillow keeps the high bytes, has no value above 12 bits."""
    largest = int(np.asarray(high_bytes).max())
    return largest <= _DEPTHS[-1] >> 8


def to_color_levels(high_bytes: Image.Image, low_bytes: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Bring a TIFF of 16-bit colors to 8 bits as `to_gray_levels` does, all channels by the same black and white."""
    tags = getattr(high_bytes, "tag_v2", None) or {}
    values = np.asarray(high_bytes).astype(np.uint16) << 8 | np.asarray(low_bytes)
    smallest, largest = float(values.min()), float(values.max())
    levels = _declared(tags, "I;16", smallest, largest)
    white = next(white for white in _DEPTHS if largest <= white)
    return _scaled(values, levels or _Levels(0, white), None, inverted=False)


def _declared(tags: Any, mode: str, smallest: float, largest: float) -> _Levels | None:
    """Return the range that a TIFF states, unless its own values contradict it."""
    own = 1 if mode == "F" else 2  # the second tag of each pair is for integers
    whites = [value for tag in _LARGEST[:own] if (value := _number(tags, tag)) is not None]
    blacks = [value for tag in _SMALLEST[:own] if (value := _number(tags, tag)) is not None]
    bits = _number(tags, _BITS)
    if bits is not None and bits < 16:
        whites.append(2.0**bits - 1)
    black = next((value for value in blacks if value <= smallest), min(0.0, smallest))
    white = next((value for value in whites if value >= largest), None)
    return _Levels(black, white) if white is not None and white > black else None


def _guessed(image: Image.Image, smallest: float, largest: float) -> _Levels:
    if image.mode == "F":
        if smallest >= 0 and largest <= 1:
            return _Levels(0, 1)
        return _Levels(0, 255) if smallest >= 0 and largest <= 255 else _Levels(smallest, largest)
    if smallest < 0 or largest > 65535:
        return _Levels(smallest, largest)
    depths = _DEPTHS if image.format in ("TIFF", None) else ()  # others spread their samples over 16 bits
    return _Levels(0, next((white for white in depths if largest <= white), 65535))


def _scaled(
    values: np.ndarray, levels: _Levels, measured: np.ndarray | None, inverted: bool
) -> UInt8[np.ndarray, "height width"]:
    black, white = levels
    span = max(white - black, np.finfo(np.float64).tiny)  # a constant image has none

    def gray(samples: np.ndarray) -> np.ndarray:
        level = np.rint((samples.astype(np.float64) - black).clip(0, white - black) * 255 / span)
        return (255 - level if inverted else level).astype(np.uint8)

    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        scaled: np.ndarray = gray(np.arange(65536))[values]
    else:
        scaled = np.empty(values.shape, np.uint8)
        for top in range(0, len(values), _STRIP_ROWS):
            rows = slice(top, top + _STRIP_ROWS)
            kept = values[rows] if measured is None else np.where(measured[rows], values[rows], black)
            scaled[rows] = gray(kept)
    if measured is not None:
        scaled[~measured] = 0
    return scaled


def _measured(values: np.ndarray, no_data: float | None) -> np.ndarray | None:
    """Say which values were measured; None for all of them."""
    measured: np.ndarray | None = None
    if values.dtype.kind == "f":
        measured = np.isfinite(values) & (np.abs(values) < _ENDLESS)
    if no_data is not None:
        tagged = values != no_data
        measured = tagged if measured is None else measured & tagged
    if values.dtype.kind != "u":
        untagged = _filler_free(values, measured)
        if untagged is not None:
            measured = untagged if measured is None else measured & untagged
    return None if measured is None or measured.all() else measured


def _filler_free(values: np.ndarray, measured: np.ndarray | None) -> np.ndarray | None:
    """Find a filler by its value, farther below all others than these lie apart."""
    counted = values if measured is None else values[measured]
    if counted.size == 0 or (smallest := float(counted.min())) not in _FILLERS:
        return None
    others: np.ndarray = counted[counted != smallest]
    if others.size == 0 or float(others.min()) - smallest <= float(others.max()) - float(others.min()):
        return None
    kept: np.ndarray = values != smallest
    return kept


def _no_data(tags: Any) -> float | None:
    text = _tag(tags, _NO_DATA)
    try:
        return float(str(text).strip("\0 ")) if text is not None else None
    except ValueError:
        return None


def _number(tags: Any, tag: int) -> float | None:
    """Return a tag's number, the same for all samples; None where it is missing or no finite number."""
    value = _tag(tags, tag)
    try:
        number = float(value[0] if isinstance(value, tuple) else value)
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return number if np.isfinite(number) else None


def _tag(tags: Any, tag: int) -> Any:
    try:
        return tags.get(tag)
    except Exception:  # a damaged tag is read as one that is missing; Pillow raises many kinds for it
        return None
