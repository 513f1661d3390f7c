import io
import zlib

import numpy as np
import pytest
from PIL import Image

from ovss_core.errors import ImageError
from ovss_core.images.decode import decode_image, picture_to_rgb
from tests.images.pictures import encoded, tiff

LIMIT = 10_000
MAX_SAMPLE, MIN_SAMPLE, SAMPLE_FORMAT, PHOTOMETRIC, NO_DATA = 281, 280, 339, 262, 42113
COMPRESSION = 259


def gray(data: bytes) -> list[int]:
    pixels = decode_image(data, LIMIT)
    assert (pixels[..., :1] == pixels).all()
    levels: list[int] = pixels[0, :, 0].tolist()
    return levels


def integers(values: list[int], tags: dict[int, int | bytes] | None = None, order: str = "<") -> bytes:
    samples = np.array(values, f"{order}u2").tobytes()
    return tiff((1, len(values)), samples, [16], tags, order)


def floats(values: list[float], tags: dict[int, int | bytes] | None = None) -> bytes:
    samples = np.array(values, "<f4").tobytes()
    return tiff((1, len(values)), samples, [32], {SAMPLE_FORMAT: 3, **(tags or {})})


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_is_stretched_to_the_largest_sample_value_that_it_states(order: str) -> None:
    assert gray(integers([0, 1024, 4095], {MAX_SAMPLE: 4095}, order)) == [0, 64, 255]
    assert gray(integers([0, 1024, 2047], {MAX_SAMPLE: 8190}, order)) == [0, 32, 64]
    assert gray(integers([0, 1024, 4095], {MAX_SAMPLE: 65535}, order)) == [0, 4, 16]


def test_the_smallest_sample_value_that_is_stated_is_black() -> None:
    assert gray(integers([100, 600, 1100], {MAX_SAMPLE: 1100, MIN_SAMPLE: 100})) == [0, 128, 255]


def test_a_stated_range_that_does_not_hold_the_values_is_not_believed() -> None:
    assert gray(integers([0, 32896, 65535], {MAX_SAMPLE: 4095})) == [0, 128, 255]
    assert gray(integers([0, 2048, 4095], {MAX_SAMPLE: 4095, MIN_SAMPLE: 9})) == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 51, 255], [0, 51, 255]),
        ([0, 256, 1023], [0, 64, 255]),
        ([0, 256, 4095], [0, 16, 255]),
        ([0, 256, 4096], [0, 1, 16]),
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 0, 0], [0, 0, 0]),
        ([77, 77, 77], [77, 77, 77]),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_that_states_nothing_is_taken_by_the_depth_that_holds_its_values(
    values: list[int], expected: list[int], order: str
) -> None:
    assert gray(integers(values, order=order)) == expected


def test_a_png_spreads_its_samples_over_16_bits_so_dark_ones_stay_dark() -> None:
    assert gray(encoded(Image.fromarray(np.array([[0, 257, 4095]], np.uint16)))) == [0, 1, 16]


def test_twelve_bits_that_are_stored_as_twelve_are_read_as_such() -> None:
    packed = bytes([0x80, 0x0F, 0xFF])  # 0x800 and 0xFFF
    assert gray(tiff((1, 2), packed, [12])) == [128, 255]


def test_compressed_tiffs_keep_what_they_state() -> None:
    samples = zlib.compress(np.array([0, 1024, 4095], "<u2").tobytes())
    assert gray(tiff((1, 3), samples, [16], {COMPRESSION: 8, MAX_SAMPLE: 8190})) == [0, 32, 128]
    colored = zlib.compress(np.array([0, 1024, 4095], "<u2").tobytes())
    decoded = decode_image(tiff((1, 1), colored, [16, 16, 16], {COMPRESSION: 8}), LIMIT)
    assert decoded.tolist() == [[[0, 64, 255]]]


@pytest.mark.parametrize("order", ["<", ">"])
def test_twelve_bits_in_16_bit_colors_are_stretched_alike_in_all_channels(order: str) -> None:
    values = np.array([[[0, 1024, 2048], [4095, 300, 5]]], f"{order}u2")
    expected = np.rint(values.astype(float) * 255 / 4095).astype(np.uint8)
    data = tiff((1, 2), values.tobytes(), [16, 16, 16], order=order)
    np.testing.assert_array_equal(decode_image(data, LIMIT), expected)
    np.testing.assert_array_equal(picture_to_rgb(Image.open(io.BytesIO(data)), LIMIT), expected)
    stated = tiff((1, 2), values.tobytes(), [16, 16, 16], {MAX_SAMPLE: 65535}, order)
    np.testing.assert_array_equal(
        decode_image(stated, LIMIT), np.rint(values.astype(float) / 257).astype(np.uint8)
    )


def test_16_bit_colors_that_use_more_than_12_bits_stay_as_they_were() -> None:
    values = np.array([[[0, 1024, 65535], [4096, 300, 5]]], "<u2")
    data = tiff((1, 2), values.tobytes(), [16, 16, 16])
    np.testing.assert_array_equal(decode_image(data, LIMIT), (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -3.4028234663852886e38, -9999.0, -32768.0])
def test_one_pixel_without_a_value_costs_no_contrast(odd: float) -> None:
    assert gray(floats([1000, 1050, 1100])) == [0, 128, 255]
    assert gray(floats([1000, odd, 1050, 1100])) == [0, 0, 128, 255]


def test_the_no_data_value_that_a_tiff_names_decides_nothing() -> None:
    assert gray(floats([3000, 1000, 1050, 1100], {NO_DATA: b"3000"})) == [0, 0, 128, 255]
    assert gray(integers([5000, 0, 2048, 4095], {NO_DATA: b"5000"})) == [0, 0, 128, 255]
    assert gray(integers([55537, 0, 32896, 65535], {NO_DATA: b"-9999"})) == [216, 0, 128, 255]
    assert gray(floats([1000, 1050, 1100], {NO_DATA: b"none"})) == [0, 128, 255]


def test_a_value_that_is_a_filler_elsewhere_counts_where_others_lie_near() -> None:
    assert gray(floats([-9999, -9000, 2000])) == [0, 21, 255]


def test_floats_from_0_to_1_and_from_0_to_255_are_gray_levels() -> None:
    assert gray(floats([0, 0.5, 0.75])) == [0, 128, 191]
    assert gray(floats([0, 100, 200])) == [0, 100, 200]
    assert gray(floats([0.25, np.nan, 0.5])) == [64, 0, 128]


@pytest.mark.parametrize("value", [-5.0, 1e6, 0.0])
def test_a_constant_image_is_one_gray(value: float) -> None:
    with np.errstate(all="raise"):
        assert len(set(gray(floats([value] * 3)))) == 1
    samples = np.array([int(value)] * 3, "<i4").tobytes()
    assert len(set(gray(tiff((1, 3), samples, [32], {SAMPLE_FORMAT: 2})))) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_that_holds_no_value_is_refused(value: float) -> None:
    with pytest.raises(ImageError, match="no pixel of the picture holds a value"):
        gray(floats([value] * 3))


def test_signed_and_32_bit_integers_are_stretched_from_smallest_to_largest() -> None:
    signed = np.array([-100, 0, 100], "<i2").tobytes()
    assert gray(tiff((1, 3), signed, [16], {SAMPLE_FORMAT: 2})) == [0, 128, 255]
    filled = np.array([-32768, 500, 0, 1000], "<i2").tobytes()
    assert gray(tiff((1, 4), filled, [16], {SAMPLE_FORMAT: 2}))[1:] == [125, 0, 249]
    large = np.array([0, 2**31, 2**32 - 1], "<u4").tobytes()
    assert gray(tiff((1, 3), large, [32])) == [0, 128, 255]


def test_white_is_zero_turns_gray_round() -> None:
    assert gray(integers([0, 1024, 4095], {PHOTOMETRIC: 0})) == [255, 191, 0]
