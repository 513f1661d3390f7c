"""Reading reference masks: label images as arrays of class indices, whatever numbering they were written in."""

import io

import numpy as np
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError

from ovss_core.errors import ImageError

_INDEX_MODES = {"L", "P", "I;16", "I;16B", "I;16L", "I", "1"}


def decode_labels(data: bytes) -> Int[np.ndarray, "height width"]:
    """Decode a label image to the values it stores, uint8 or uint16; palette images give indices, not colours.

    Raises:
        ImageError: No image, a broken one, or one with several channels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in _INDEX_MODES:
                raise ImageError(
                    f"the reference mask has mode {image.mode}; give a PNG with one channel of class indices "
                    "(greyscale or palette), not colours"
                )
            values = np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"the reference mask cannot be read: {error}") from error
    return values.astype(np.uint8 if values.dtype == bool else values.dtype, copy=False)
