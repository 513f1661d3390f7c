"""Reference masks are read as the values they store."""

import io
import struct
import zlib

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


def test_a_palette_image_gives_indices_and_not_colors() -> None:
    image = Image.fromarray(VALUES, "L").convert("L")
    image.putpalette([value for index in range(256) for value in (255 - index, index, 7)])

    assert np.array_equal(decode_labels(_png(image)), VALUES)


def test_a_grayscale_image_gives_its_values() -> None:
    assert np.array_equal(decode_labels(_png(Image.fromarray(VALUES))), VALUES)


def test_a_16_bit_image_keeps_values_above_255() -> None:
    values = np.array([[300, 65_535], [0, 255]], np.uint16)

    labels = decode_labels(_png(Image.fromarray(values)))

    assert labels.tolist() == values.tolist()


def test_a_color_image_is_refused_with_its_mode() -> None:
    with pytest.raises(ImageError, match="mode RGB"):
        decode_labels(_png(Image.new("RGB", (4, 4))))


@pytest.mark.parametrize("data", [b"", b"no image", _png(Image.fromarray(VALUES))[:40]])
def test_what_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        decode_labels(data)


@pytest.mark.parametrize("bits", [2, 4])
def test_grayscale_of_few_bits_gives_the_values_it_stores(bits: int) -> None:
    assert decode_labels(_gray_png(8, 1, bits, bytes([0b00011011] * bits))).tolist() == [
        [0, 1, 2, 3] * 2 if bits == 2 else [1, 11] * 4
    ]


def test_a_mask_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageError, match="max_pixels"):
        decode_labels(_gray_png(60_000, 60_000, 8, b"\0"))
    with pytest.raises(ImageError, match="max_pixels"):
        decode_labels(_png(Image.fromarray(VALUES)), max_pixels=VALUES.size - 1)


def _gray_png(width: int, height: int, bits: int, row: bytes) -> bytes:
    """Write a grayscale PNG of any depth with one row of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
