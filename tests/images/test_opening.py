import re
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from ovss_core.errors import ImageError
from ovss_core.images import opening
from ovss_core.images.box_files import av1_frame_sizes, jpeg_xl_size
from ovss_core.images.containers import identify
from ovss_core.images.decode import EncodedImage, decode_image
from ovss_core.images.opening import FORMATS, open_image
from tests.images.pictures import (
    RAMP,
    encoded,
    icon,
    png_chunk,
    png_header_only,
    progressive_jpeg,
    tiff,
    with_chunk,
)

LIMIT = 10_000
PICTURE = Image.fromarray(np.kron(RAMP, np.ones((8, 10, 1), np.uint8)))
PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}


def plugin_file(kind: str, image: Image.Image = PICTURE, **options: object) -> bytes:
    module = pytest.importorskip(PLUGINS[kind])
    if kind == "HEIF":
        module.register_heif_opener()
    return encoded(image, kind, **options)


def patched(data: bytes, name: bytes, skip: int, numbers: bytes) -> bytes:
    place = data.index(name) + len(name) + skip
    return data[:place] + numbers + data[place + len(numbers) :]


def bitmap_header(width: int, height: int) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, 32, 0, 0, 0, 0, 0, 0)


def webp_with_canvas(side: int) -> bytes:
    body = encoded(PICTURE, "WEBP", lossless=True)[12:]
    sides = (side - 1).to_bytes(3, "little") * 2
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides
    return b"RIFF" + struct.pack("<I", 4 + len(extended) + len(body)) + b"WEBP" + extended + body


def gif_with_frame(side: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\x00;"


def tiled_tiff(side: int, both: bool = True) -> bytes:
    tags: dict[int, int | bytes] = {322: side, 324: 200, 325: 8, 259: 8}
    return tiff((8, 8), zlib.compress(bytes(64)), [8], tags | ({323: side} if both else {}))


def tiff_of_two_minds(side: int) -> bytes:
    """Write a directory that names the width of the tiles twice: first so large, then small."""
    data = tiled_tiff(side)
    place = data.index(struct.pack("<HHII", 324, 4, 1, 200))
    return data[:place] + struct.pack("<HHII", 322, 4, 1, 16) + data[place + 12 :]


SMALL_JP2 = encoded(PICTURE, "JPEG2000")
SMALL_AVIF = encoded(PICTURE, "AVIF", speed=10)
LIES = {
    "an icon with a PNG": icon(png_header_only(4000, 4000)),
    "an icon with a bitmap": icon(bitmap_header(4000, 8000)),
    "an icon with a bitmap upside down": icon(bitmap_header(4000, -8000)),
    "an AVIF of one frame": patched(
        encoded(PICTURE.resize((400, 400)), "AVIF"), b"ispe", 4, struct.pack(">II", 16, 16)
    ),
    "a JP2 with a small header": patched(
        encoded(PICTURE.resize((400, 400)), "JPEG2000"), b"ihdr", 0, struct.pack(">II", 16, 16)
    ),
    "a JP2 of too many components": patched(SMALL_JP2, b"\xff\x4f\xff\x51", 36, struct.pack(">H", 16000)),
    "a TIFF with large tiles": tiled_tiff(4000),
    "a TIFF with tiles of one large side": tiled_tiff(4_000_000, both=False),
    "a TIFF that says two sizes": tiff_of_two_minds(4000),
    "a TIFF of too many samples": tiff((64, 64), bytes(64), [8], {277: 60_000, 259: 8}),
    "a WebP with a large canvas": webp_with_canvas(4000),
    "a GIF with a frame beyond its screen": gif_with_frame(4000),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_size_that_hides_behind_a_small_header_is_refused(lie: str) -> None:
    start = time.process_time()
    with pytest.raises(ImageError, match=r"max_pixels \(10,000\); raise it"):
        open_image(LIES[lie], LIMIT)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("kind", [*FORMATS, "HEIF", "JXL"])
def test_every_format_holds_its_own_size_to_the_limit(kind: str) -> None:
    image = PICTURE.convert("RGBA") if kind == "ICO" else PICTURE
    options = {"sizes": [(48, 48)]} if kind == "ICO" else {}
    data = plugin_file(kind) if kind in PLUGINS else encoded(image, kind, **options)
    header = EncodedImage(data, LIMIT)
    height, width = header.height, header.width
    assert decode_image(data, height * width).shape == (height, width, 3)
    with pytest.raises(ImageError, match=r"pixels, more than max_pixels \(99\)"):
        decode_image(data, 99)


def test_a_picture_may_be_smaller_than_the_tile_it_lies_in() -> None:
    assert decode_image(encoded(PICTURE, "TIFF", compression="jpeg"), LIMIT).shape == (48, 50, 3)
    assert open_image(tiled_tiff(16), LIMIT).size == (8, 8)


def test_the_png_in_an_icon_is_decoded_as_any_png() -> None:
    np.testing.assert_array_equal(decode_image(icon(encoded(PICTURE)), LIMIT), np.asarray(PICTURE))


@pytest.mark.parametrize("size", [(50, 48), (64, 64), (1, 1), (333, 17)])
def test_frame_sizes_are_read_from_av1_streams(size: tuple[int, int]) -> None:
    image = PICTURE.resize(size)
    assert set(av1_frame_sizes(encoded(image, "AVIF", speed=10))) == {size}
    frames = encoded(image, "AVIF", speed=10, save_all=True, append_images=[image.rotate(180)])
    assert set(av1_frame_sizes(frames)) == {size}


@pytest.mark.parametrize(
    "size", [(8, 8), (256, 256), (100, 75), (1000, 8), (257, 300), (1920, 1080), (9000, 2)]
)
@pytest.mark.parametrize("boxed", [False, True])
def test_sizes_are_read_from_jpeg_xl_headers(size: tuple[int, int], boxed: bool) -> None:
    data = plugin_file("JXL", Image.new("L", size), use_container=boxed, effort=1)
    assert data.startswith(b"\xff\x0a") != boxed
    assert jpeg_xl_size(data) == size


def test_headers_cut_anywhere_are_read_without_an_error() -> None:
    for whole, read in (
        (SMALL_AVIF, av1_frame_sizes),
        (plugin_file("JXL", use_container=True), jpeg_xl_size),
    ):
        for length in range(len(whole)):
            list(read(whole[:length]) or ())


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once_and_says_why() -> None:
    start = time.process_time()
    with pytest.raises(ImageError, match=r"the JPEG has 3,000 scans, more than the 100"):
        open_image(progressive_jpeg(3000, side=512), 10**6)
    assert time.process_time() - start < 1
    assert decode_image(progressive_jpeg(100), LIMIT).shape == (64, 64, 3)


def test_scans_in_a_jpegs_metadata_do_not_count() -> None:
    whole = encoded(PICTURE, "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 400) + b"\xff\xda" * 200
    np.testing.assert_array_equal(
        decode_image(whole[:2] + comment + whole[2:], LIMIT), decode_image(whole, LIMIT)
    )


def test_heic_and_jpeg_xl_are_decoded_where_the_extra_is_installed() -> None:
    exact = decode_image(plugin_file("JXL", lossless=True), LIMIT)
    np.testing.assert_array_equal(exact, np.asarray(PICTURE))
    near = decode_image(plugin_file("HEIF", quality=95), LIMIT)
    assert np.abs(near.astype(int) - np.asarray(PICTURE)).mean() < 6


def test_heic_is_turned_upright_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_image(plugin_file("HEIF", quality=95), LIMIT)
    turned = decode_image(
        plugin_file("HEIF", PICTURE.transpose(Image.Transpose.ROTATE_90), quality=95, exif=exif.tobytes()),
        LIMIT,
    )
    assert turned.shape == upright.shape
    assert np.abs(turned.astype(int) - upright).mean() < 6


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("HEIF", "HEIC needs pillow-heif"), ("JXL", "JPEG XL needs pillow-jxl-plugin")],
)
def test_without_the_extra_the_reason_names_it(
    kind: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = plugin_file(kind)
    monkeypatch.setitem(sys.modules, PLUGINS[kind], None)
    opening._register.cache_clear()
    with pytest.raises(ImageError, match=rf"^{re.escape(advice)}: pip install 'ovss\[formats\]'$"):
        decode_image(data, LIMIT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b" <!DOCTYPE html>\n<html>404</html>", "an HTML page, no image"),
        (b"<?xml version='1.0'?><svg width='9'/>", "an SVG drawing, no image"),
        (b"%PDF-1.7", "a PDF, no image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        (b'{"error": "not found"}', "JSON, no image"),
        (b"PK\x03\x04" + bytes(40), "a ZIP archive, no image"),
    ],
)
def test_what_is_no_image_is_named_for_what_it_is(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(data, LIMIT)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("PNG", r"the PNG is truncated: [0-9,]+ bytes of its chunk IDAT are missing"),
        ("JPEG", "the JPEG is truncated: it ends after [0-9,]+ bytes, without its end-of-image marker"),
        ("WEBP", "the WEBP is truncated: [0-9,]+ bytes are missing at its end"),
        ("AVIF", "the AVIF is truncated: [0-9,]+ bytes are missing at its end"),
        ("JPEG2000", "the JPEG2000 is truncated: [0-9,]+ bytes are missing at its end"),
        ("TIFF", "the TIFF is truncated: its pixels end early"),
        ("GIF", "the GIF is truncated: its pixels end early"),
        ("BMP", "the BMP is truncated: its pixels end early"),
    ],
)
def test_a_truncated_file_is_refused_with_what_is_missing(kind: str, reason: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8))
    whole = encoded(noise, kind)
    with pytest.raises(ImageError, match=reason):
        decode_image(whole[: len(whole) // 2], LIMIT)


def test_a_format_that_is_known_but_not_read_says_what_its_decoder_minds() -> None:
    with pytest.raises(ImageError, match=r"begins as TIFF, but cannot be read as one \(unknown pixel mode\)"):
        decode_image(tiff((1, 1), bytes(8), [64], {339: 3}), LIMIT)


def test_first_bytes_name_the_format_whatever_the_file_is_called() -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "ICO"):
        assert identify(encoded(PICTURE.convert("RGBA") if kind == "ICO" else PICTURE, kind)) == kind
    assert identify(plugin_file("HEIF")) == "HEIF"
    assert identify(plugin_file("JXL")) == "JXL"
    assert identify(b"P6 1 1 255\n") is None


def test_a_png_with_megabytes_of_compressed_comments_is_labelled() -> None:
    whole = encoded(PICTURE)
    comment = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(4 << 20)))
    for place in (b"IDAT", b"IEND"):
        np.testing.assert_array_equal(
            decode_image(with_chunk(whole, comment, place), LIMIT), np.asarray(PICTURE)
        )
