import numpy as np
import pytest
from PIL import Image

from ovss_core.errors import ImageError
from ovss_core.images.decode import EncodedImage, decode_image, to_rgb
from tests.images.pictures import RAMP, encoded, png_header_only

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
LIMIT = 1_000_000
PICTURES = {"ICO": Image.new("RGBA", (48, 48), (9, 99, 199, 128))}


def test_lossless_pixels_come_back_as_they_were() -> None:
    decoded = decode_image(encoded(Image.fromarray(RAMP)), LIMIT)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, RAMP)
    header = EncodedImage(encoded(Image.fromarray(RAMP)), LIMIT)
    assert (header.height, header.width) == (6, 5)


def test_one_pixel_is_an_image() -> None:
    np.testing.assert_array_equal(
        decode_image(encoded(Image.new("RGB", (1, 1), (7, 8, 9))), LIMIT), [[[7, 8, 9]]]
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_image(orientation: int) -> None:
    stored = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.transpose(1, 0, 2),
        6: RAMP.transpose(1, 0, 2)[::-1],
        7: RAMP[::-1, ::-1].transpose(1, 0, 2),
        8: RAMP.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
        np.testing.assert_array_equal(decode_image(data, LIMIT), RAMP)


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = decode_image(encoded(Image.fromarray(values), kind), LIMIT)
        np.testing.assert_array_equal(decoded[..., 0], [[0, 1, 128, 255]])
        assert decoded.shape == (1, 4, 3)


def test_float_images_of_unknown_range_are_stretched() -> None:
    decoded = decode_image(
        encoded(Image.fromarray(np.array([[-10.0, 0.0, 10.0]], np.float32)), "TIFF"), LIMIT
    )
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 128, 255])


def test_cmyk_is_converted() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    np.testing.assert_array_equal(decode_image(data, LIMIT)[4, 4], [255, 0, 0])


def test_palette_and_gray_become_rgb() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode_image(encoded(palette), LIMIT), [[[10, 20, 30], [40, 50, 60]]])
    np.testing.assert_array_equal(to_rgb(Image.new("L", (1, 1), 77)), [[[77, 77, 77]]])
    np.testing.assert_array_equal(to_rgb(Image.new("1", (1, 1), 1)), [[[255, 255, 255]]])


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    np.testing.assert_array_equal(decode_image(encoded(image), LIMIT), [[[255, 255, 255], [200, 0, 0]]])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode_image(data, LIMIT)[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"plain text that calls itself an image", "no image in a format"),
        (encoded(Image.fromarray(RAMP.repeat(40, 0).repeat(40, 1)), "JPEG")[:1500], "truncated"),
        (encoded(Image.fromarray(RAMP), "JPEG")[:100], "cannot decode|no image"),
        (png_header_only(20_000, 10_000), r"max_pixels.*200000000"),
        (png_header_only(20_000, 6_000), r"120,000,000 pixels, more than max_pixels"),
        (png_header_only(10, 10), "cannot decode"),
        (png_header_only(0, 10), "cannot decode|no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image in a format"),
    ],
)
def test_what_cannot_be_decoded_is_an_image_error_of_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(data, 100_000_000)
    assert "\n" not in str(caught.value)


def test_every_truncation_and_flipped_byte_is_pixels_or_an_image_error() -> None:
    generator = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "AVIF", "JPEG2000", "ICO", "PPM", "TGA"):
        whole = encoded(PICTURES.get(kind, Image.fromarray(RAMP)), kind)
        for _ in range(60):
            data = bytearray(whole)
            data[int(generator.integers(len(data)))] ^= int(generator.integers(1, 256))
            for candidate in (bytes(data), whole[: int(generator.integers(len(whole)))]):
                try:
                    decoded = decode_image(candidate, LIMIT)
                except ImageError:
                    continue
                assert decoded.dtype == np.uint8
                assert decoded.shape[2] == 3


def test_the_limit_can_be_above_pillows_own() -> None:
    with pytest.raises(ImageError, match="cannot decode"):
        decode_image(png_header_only(30_000, 20_000), 700_000_000)
    assert Image.MAX_IMAGE_PIXELS is not None


def test_a_broken_exif_block_does_not_cost_the_image() -> None:
    data = encoded(Image.fromarray(RAMP), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    np.testing.assert_array_equal(decode_image(data, LIMIT), RAMP)
