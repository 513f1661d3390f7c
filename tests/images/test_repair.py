import struct

import numpy as np
import pytest
from PIL import Image

from ovss_core.errors import ImageError
from ovss_core.evaluation import decode_labels
from ovss_core.images.decode import decode_image
from ovss_core.images.repair import plain_png
from tests.images.pictures import RAMP, encoded, png_chunk, with_chunk

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow speaks of each damaged block
LIMIT = 10_000
PICTURE = Image.fromarray(RAMP)
PNG = encoded(PICTURE)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data: bytes = exif.tobytes()
    return data


def with_segment(data: bytes, marker: int, body: bytes) -> bytes:
    """Put a segment behind the start of a JPEG."""
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body + data[2:]


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"eXIf", b"tRNS", b"zzZz"])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_a_wrong_checksum_in_a_chunk_that_decides_no_pixel_costs_nothing(name: bytes, before: bytes) -> None:
    damaged = with_chunk(PNG, png_chunk(name, b"any\0thing at all", checksum=1), before)
    np.testing.assert_array_equal(decode_image(damaged, LIMIT), RAMP)


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT"])
def test_a_wrong_checksum_in_a_chunk_of_pixels_is_refused_by_its_name(name: bytes) -> None:
    place = PNG.index(name)
    end = place + 4 + int.from_bytes(PNG[place - 4 : place], "big")
    damaged = PNG[:end] + bytes(4) + PNG[end + 4 :]
    with pytest.raises(ImageError, match=rf"^the PNG is damaged \(checksum of chunk {name.decode()}\)$"):
        decode_image(damaged, LIMIT)
    with pytest.raises(ImageError, match=r"the reference mask cannot be read: the PNG is damaged"):
        decode_labels(damaged)


def test_what_decides_pixels_stays_in_a_png() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    clear = encoded(palette, transparency=0)
    np.testing.assert_array_equal(decode_image(clear, LIMIT), [[[255, 255, 255], [40, 50, 60]]])
    np.testing.assert_array_equal(decode_image(encoded(PICTURE, exif=turned(3)), LIMIT), RAMP[::-1, ::-1])


def test_a_png_of_pixels_alone_is_taken_as_it_is() -> None:
    assert plain_png(PNG) is PNG
    assert plain_png(with_chunk(PNG, png_chunk(b"tEXt", b"a\0b"))) == PNG
    assert plain_png(PNG + b"and something behind") == PNG


def test_a_png_without_its_end_or_with_garbage_for_it_is_labelled_as_viewers_do() -> None:
    for data in (PNG[:-12], PNG[:-5], PNG[:-12] + b"\0\0\0\0garbage"):
        np.testing.assert_array_equal(decode_image(data, LIMIT), RAMP)


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE2, b"ICC_PROFILE\0\x01"),
        (0xE2, b"MPF\0\xff\xff"),
        (0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        (0xE1, b"Exif\0\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<not xml"),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04\x00\x00\xff\xff\xff\xff"),
        (0xFE, b"\xff\xd8\xff\xda"),
    ],
)
def test_damaged_metadata_of_a_jpeg_costs_nothing(marker: int, body: bytes) -> None:
    whole = encoded(PICTURE, "JPEG")
    np.testing.assert_array_equal(
        decode_image(with_segment(whole, marker, body), LIMIT), decode_image(whole, LIMIT)
    )


def test_a_jpeg_with_a_broken_profile_is_still_turned_upright() -> None:
    stored = Image.fromarray(np.ascontiguousarray(RAMP[::-1, ::-1]))
    whole = encoded(stored, "JPEG", quality=100, subsampling=0, exif=turned(3))
    broken = with_segment(whole, 0xE2, b"ICC_PROFILE\0\x01")
    np.testing.assert_array_equal(decode_image(broken, LIMIT), decode_image(whole, LIMIT))
    assert np.abs(decode_image(broken, LIMIT).astype(int) - RAMP).max() < 12


def test_bytes_behind_a_jpegs_end_cost_nothing() -> None:
    whole = encoded(PICTURE, "JPEG")
    np.testing.assert_array_equal(
        decode_image(whole + b"\0trailing\xff\xd8", LIMIT), decode_image(whole, LIMIT)
    )


@pytest.mark.parametrize("kind", ["AVIF", "WEBP"])
def test_a_broken_exif_block_of_other_formats_costs_nothing(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    marked = encoded(PICTURE, kind, exif=exif.tobytes())
    place = max(marked.rfind(b"MM\0*"), marked.rfind(b"II*\0"))
    assert place > 0
    broken = marked[:place] + b"\xff" * 8 + marked[place + 8 :]
    np.testing.assert_array_equal(decode_image(broken, LIMIT), decode_image(encoded(PICTURE, kind), LIMIT))
