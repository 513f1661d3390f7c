"""Resizing equals the reference bytes and a loop; normalizing equals its formula."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovss_core.errors import ConfigError
from ovss_core.images.resize import (
    normalize,
    resize_bilinear,
    resize_image,
    resized_size,
)
from tests.golden_preprocessing import check_preprocessing
from tests.golden_report import Report

GOLDEN = Path(__file__).parent.parent / "golden"
RNG = np.random.default_rng(3)


def _picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, channels), dtype=np.uint8
    )


def _axis(position: int, length: int, new_length: int) -> tuple[int, float]:
    center = float(np.float32((position + 0.5) * (length / new_length) - 0.5))
    return math.floor(center), center - math.floor(center)


def loop_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation in exact arithmetic, pixel by pixel."""
    height, width, channels = image.shape
    resized = np.zeros((*size, channels))
    for y in range(size[0]):
        top, down = _axis(y, height, size[0])
        for x in range(size[1]):
            left, right = _axis(x, width, size[1])
            for dy, row_weight in ((0, 1 - down), (1, down)):
                for dx, column_weight in ((0, 1 - right), (1, right)):
                    row = min(max(top + dy, 0), height - 1)
                    column = min(max(left + dx, 0), width - 1)
                    resized[y, x] += row_weight * column_weight * image[row, column]
    return resized


def test_every_reference_resize_and_normalization_is_met_to_the_bit() -> None:
    report = Report()

    check_preprocessing(GOLDEN, report)

    assert len(report.rows) >= 20
    assert not report.missed, report.missed


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 25), st.integers(1, 25))
def test_resizing_stays_within_one_gray_level_of_exact_bilinear_interpolation(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    image = _picture(height, width)

    resized = resize_bilinear(image, (new_height, new_width))

    assert resized.shape == (new_height, new_width, 3)
    assert np.abs(resized - loop_bilinear(image, (new_height, new_width))).max() < 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 255), st.integers(1, 300), st.integers(1, 300))
def test_a_plain_picture_stays_plain_at_any_size(level: int, height: int, width: int) -> None:
    resized = resize_bilinear(np.full((37, 53, 3), level, np.uint8), (height, width))

    assert np.abs(resized.astype(int) - level).max() <= 1


def test_a_picture_of_the_wanted_size_is_returned_untouched() -> None:
    image = _picture(40, 60)

    assert np.array_equal(resize_image(image, 40, 2048), image)


def test_channels_are_resized_independently() -> None:
    image = _picture(31, 45)

    together = resize_bilinear(image, (77, 60))

    for channel in range(3):
        alone = resize_bilinear(image[..., channel : channel + 1], (77, 60))
        assert np.array_equal(together[..., channel : channel + 1], alone)


def test_strips_of_rows_join_without_a_seam() -> None:
    row = RNG.integers(0, 256, (200, 1, 1), dtype=np.uint8)

    tall = resize_bilinear(row.repeat(5, 1).repeat(3, 2), (321, 5))

    assert np.array_equal(tall[:, 0], tall[:, 4])
    assert np.abs(tall[:, :1, :1] - loop_bilinear(row, (321, 1))).max() < 1.0


def test_a_strided_view_resizes_as_its_copy() -> None:
    image = _picture(30, 40)

    assert np.array_equal(
        resize_bilinear(image[..., ::-1], (50, 60)), resize_bilinear(image, (50, 60))[..., ::-1]
    )


@pytest.mark.parametrize(
    ("size", "short_side", "minimum", "expected"),
    [
        ((300, 451), 336, 1, (336, 505)),
        ((512, 512), 448, 1, (448, 448)),
        ((40, 451), 448, 1, (182, 2048)),
        ((5000, 5), 336, 16, (2048, 16)),
        ((1, 1), 336, 16, (336, 336)),
    ],
)
def test_the_short_side_rules_until_the_long_side_is_reached(
    size: tuple[int, int], short_side: int, minimum: int, expected: tuple[int, int]
) -> None:
    assert resized_size(size, short_side, 2048, minimum) == expected


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_what_is_no_uint8_picture_is_refused_with_its_type_and_shape(image: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"give uint8 \[height, width, channels\]"):
        resize_bilinear(image, (8, 8))


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one pixel"):
        resize_image(np.zeros((0, 5, 3), np.uint8), 336, 2048)


def test_normalizing_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel() -> None:
    image = _picture(3, 2)

    planes = normalize(image)

    mean = np.array([122.771, 116.746, 104.094], np.float32)
    deviation = np.array([68.501, 66.632, 70.323], np.float32)
    expected = (image.astype(np.float32) - mean) / deviation
    assert planes.dtype == torch.float32
    assert torch.equal(planes, torch.from_numpy(expected).permute(2, 0, 1))


def test_normalizing_a_batch_equals_normalizing_each_picture() -> None:
    images = np.stack([_picture(5, 7), _picture(5, 7)[::-1]])

    batch = normalize(torch.from_numpy(images.copy()))

    assert torch.equal(batch, torch.stack([normalize(image) for image in images]))
    assert batch.is_contiguous()
