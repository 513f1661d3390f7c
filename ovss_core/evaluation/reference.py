"""Reading reference masks: label images as arrays of class indices, whatever numbering they were written in."""

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageFile

from ovss_core.config import SegmenterConfig
from ovss_core.errors import ImageError
from ovss_core.images.opening import one_line_errors, open_image

_INDEX_MODES = {"L", "P", "I;16", "I;16B", "I;16L", "I", "1"}
_STRETCHED = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies the values of grayscale images of 2 and 4 bits by, so that white is 255."""


def decode_labels(
    data: bytes, max_pixels: int = SegmenterConfig.max_pixels
) -> Int[np.ndarray, "height width"]:
    """Decode a label image to the values it stores, uint8 or uint16; palette images give indices, not colors.

    Args:
        data: The file.
        max_pixels: Masks with more pixels are refused before they are decoded.

    Raises:
        ImageError: No image, a broken or too large one, or one with several channels.
    """
    try:
        with one_line_errors(data), open_image(data, max_pixels) as image:
            _check_mode(image)
            stretch = _stretch(image)
            values = np.array(image)
    except ImageError as error:
        raise ImageError(f"the reference mask cannot be read: {error}") from error
    if values.dtype == bool:
        return values.astype(np.uint8)
    return values // stretch if stretch > 1 else values


def _stretch(image: Image.Image) -> int:
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return _STRETCHED.get(str(tiles[0].args), 1) if tiles else 1


def _check_mode(image: Image.Image) -> None:
    if image.mode not in _INDEX_MODES:
        raise ImageError(
            f"it has mode {image.mode}; give a PNG with one channel of class indices (grayscale or palette), "
            "not colors"
        )
