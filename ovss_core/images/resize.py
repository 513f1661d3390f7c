"""Resizing images as the published protocols do, to the byte, and normalizing them as CLIP expects."""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ovss_core.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resized_size(size: tuple[int, int], short_side: int, long_side: int, minimum: int = 1) -> tuple[int, int]:
    """Return the height and width that keep the ratio: int(side * f + 0.5), f = min(long / L, short / S).

    Args:
        size: Height and width of the image in pixels.
        short_side: Wanted length of the shorter side.
        long_side: Upper limit of the longer side; where both cannot hold, this one decides.
        minimum: No side becomes shorter than this (the patch size: a thin strip still fills one patch).

    Examples:
        >>> resized_size((375, 500), short_side=336, long_side=2048)
        (336, 448)
        >>> resized_size((100, 5000), short_side=336, long_side=2048)
        (41, 2048)
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


def resize_bilinear(
    image: UInt8[np.ndarray, "height width channels"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """Resize by bilinear interpolation without antialias: OpenCV's INTER_LINEAR, as the code of both papers does.

    Other libraries round differently, by one gray level here and there (``golden/preprocessing.npz`` pins the bytes).
    Python's lock is released meanwhile, so that threads resize side by side.

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
    if image.shape[:2] == size:
        return image
    resized = cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized).reshape(*size, image.shape[2])


@lru_cache(maxsize=16)
def channel_levels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Turn shares of white into gray levels, rounded to three decimals as the code of both papers has them."""
    with torch.inference_mode(
        False
    ):  # kept for all: a tensor made in inference mode cannot take part in training
        return torch.tensor([round(value * 255, 3) for value in values], device=device)[:, None, None]


def normalize(
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
    center, spread = (channel_levels(tuple(values), pixels.device) for values in (mean, std))
    planes = pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.sub_(center).div_(spread)
