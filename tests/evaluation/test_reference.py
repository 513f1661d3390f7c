"""Reference masks are read as the values they store."""

import io

import numpy as np
import pytest
from PIL import Image

from ovss_core.errors import ImageError
from ovss_core.evaluation.reference import decode_labels

VALUES = np.array([[0, 1, 20], [255, 7, 3]], np.uint8)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_a_palette_image_gives_indices_and_not_colours() -> None:
    image = Image.fromarray(VALUES, "L").convert("L")
    image.putpalette([value for index in range(256) for value in (255 - index, index, 7)])

    assert np.array_equal(decode_labels(_png(image)), VALUES)


def test_a_greyscale_image_gives_its_values() -> None:
    assert np.array_equal(decode_labels(_png(Image.fromarray(VALUES))), VALUES)


def test_a_16_bit_image_keeps_values_above_255() -> None:
    values = np.array([[300, 65_535], [0, 255]], np.uint16)

    labels = decode_labels(_png(Image.fromarray(values)))

    assert labels.tolist() == values.tolist()


def test_a_colour_image_is_refused_with_its_mode() -> None:
    with pytest.raises(ImageError, match="mode RGB"):
        decode_labels(_png(Image.new("RGB", (4, 4))))


@pytest.mark.parametrize("data", [b"", b"no image", _png(Image.fromarray(VALUES))[:40]])
def test_what_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        decode_labels(data)
