"""Resizing images as the published protocols do, to the byte, and normalising them as CLIP expects."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ovss_core.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_WEIGHT_BITS = 11
_WEIGHT_ONE = np.float32(1 << _WEIGHT_BITS)
_STRIP_ROWS = 64


class _Taps(NamedTuple):
    """The two source samples of every output sample along one axis, and their integer weights."""

    first: np.ndarray
    second: np.ndarray
    first_weight: np.ndarray
    second_weight: np.ndarray


def resized_size(size: tuple[int, int], short_side: int, long_side: int, minimum: int = 1) -> tuple[int, int]:
    """Return the height and width that keep the ratio: int(side * f + 0.5), f = min(long / L, short / S).

    Args:
        size: Height and width of the image in pixels.
        short_side: Wanted length of the shorter side.
        long_side: Upper limit of the longer side; where both cannot hold, this one decides.
        minimum: No side becomes shorter than this (the patch size: a thin strip still fills one patch).
    """
    if min(size) < 1:
        raise ConfigError(f"the image is {size[0]} x {size[1]} pixels; give one with at least one pixel")
    factor = min(long_side / max(size), short_side / min(size))
    height, width = (max(int(side * factor + 0.5), minimum) for side in size)
    return height, width


def resize_image(
    image: UInt8[np.ndarray, "height width 3"], short_side: int, long_side: int, minimum: int = 1
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resize a picture to the protocols' size, keeping its ratio; see `resized_size` and `resize_bilinear`."""
    return resize_bilinear(image, resized_size(image.shape[:2], short_side, long_side, minimum))


def resize_images(
    images: Sequence[np.ndarray], short_side: int, long_side: int, minimum: int = 1
) -> list[np.ndarray]:
    """Resize several pictures of any sizes; each as `resize_image` alone."""
    return [resize_image(image, short_side, long_side, minimum) for image in images]


def resize_bilinear(
    image: UInt8[np.ndarray, "height width channels"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """Resize by bilinear interpolation in 11-bit fixed point without antialias, as OpenCV's INTER_LINEAR does.

    Columns are combined first, in 19 bits of which the lowest 4 are dropped; then rows, each product cut to its
    upper 16 bits before the sum is rounded. Other roundings differ by one grey level here and there
    (``golden/preprocessing.npz`` pins the bytes).

    Args:
        image: uint8, any number of channels, at least one pixel.
        size: New height and width in pixels.

    Returns:
        A new array, or `image` itself if it has that size already.
    """
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ConfigError(
            f"a picture of type {image.dtype} and shape {image.shape} cannot be resized; "
            "give uint8 [height, width, channels]"
        )
    height, width, channels = image.shape
    if (height, width) == size:
        return image
    columns, rows = _column_taps(width, size[1], channels), _row_taps(height, size[0])
    lines = np.ascontiguousarray(image).reshape(height, width * channels)
    resized = np.empty((size[0], size[1] * channels), np.uint8)
    for start in range(0, size[0], _STRIP_ROWS):
        part = slice(start, start + _STRIP_ROWS)
        resized[part] = _resize_strip(lines, columns, _Taps(*(tap[part] for tap in rows)))
    return resized.reshape(*size, channels)


def _resize_strip(lines: np.ndarray, columns: _Taps, rows: _Taps) -> np.ndarray:
    """Resize the rows of one strip; only the source rows that it reads are resized along the columns."""
    used, place = np.unique(np.concatenate([rows.first, rows.second]), return_inverse=True)
    first_place, second_place = np.split(place, 2)
    source = lines[used]
    wide = source.take(columns.first, 1, mode="clip") * columns.first_weight
    wide += source.take(columns.second, 1, mode="clip") * columns.second_weight
    wide >>= 4
    strip: np.ndarray = wide.take(first_place, 0)
    strip *= rows.first_weight[:, None]
    strip >>= 16
    below = wide.take(second_place, 0)
    below *= rows.second_weight[:, None]
    below >>= 16
    strip += below
    strip += 2
    strip >>= 2
    return strip


@lru_cache(maxsize=512)
def _column_taps(length: int, new_length: int, channels: int) -> _Taps:
    """Return taps into interleaved channels; outside the picture one border sample has all the weight."""
    first, fraction = _positions(length, new_length)
    fraction[(first < 0) | (first >= length - 1)] = 0
    first = first.clip(0, length - 1)
    second = (first + 1).clip(max=length - 1)
    interleaved = (
        (tap[:, None] * channels + np.arange(channels)).ravel().astype(np.intp) for tap in (first, second)
    )
    return _Taps(*interleaved, *(weight.repeat(channels) for weight in _weights(fraction)))


@lru_cache(maxsize=512)
def _row_taps(length: int, new_length: int) -> _Taps:
    """Return taps of rows; outside the picture both are the border row and the weights stay as they are."""
    first, fraction = _positions(length, new_length)
    return _Taps(first.clip(0, length - 1), (first + 1).clip(0, length - 1), *_weights(fraction))


def _positions(length: int, new_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sample before each output sample's centre, and how far the centre lies past it (float32)."""
    scale = 1.0 / (new_length / length)
    centre = ((np.arange(new_length) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(centre)
    return first.astype(np.int64), centre - first


def _weights(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both weights in 11 bits, each rounded half to even on its own (the sum may be off by one)."""
    first = np.rint((np.float32(1) - fraction) * _WEIGHT_ONE).astype(np.int32)
    return first, np.rint(fraction * _WEIGHT_ONE).astype(np.int32)


@lru_cache(maxsize=16)
def _grey_levels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Turn shares of white into grey levels, rounded to three decimals as the code of both papers has them."""
    with torch.inference_mode(
        False
    ):  # kept for all: a tensor made in inference mode cannot take part in training
        return torch.tensor([round(value * 255, 3) for value in values], device=device)[:, None, None]


def normalise(
    image: np.ndarray | UInt8[Tensor, "*batch height width 3"],
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Float[Tensor, "*batch 3 height width"]:
    """Turn uint8 RGB pictures into what CLIP's image tower reads (122.771 is the mean for 0.48145466 * 255).

    Args:
        image: uint8 RGB; a batch of pictures of one size, or a single one. A tensor stays on its device.
        mean: Mean of each channel, in [0, 1], as open_clip gives it.
        std: Standard deviation of each channel, in the same unit.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    center, spread = (_grey_levels(tuple(values), pixels.device) for values in (mean, std))
    planes = pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.sub_(center).div_(spread)
