import numpy as np
import pytest

from ovss_core.config import WindowConfig
from ovss_core.images.windows import WindowLayout, axis_windows
from tests.oracles import window_starts


@pytest.mark.parametrize("size", [1, 7, 32])
@pytest.mark.parametrize("stride", [1, 3, 7])
def test_starts_equal_walking_along_the_axis(size: int, stride: int) -> None:
    for length in range(1, 100):
        windows = axis_windows(length, size, min(stride, size))
        expected = window_starts(length, min(size, length), min(stride, size))
        assert list(windows.starts) == expected
        covered = np.zeros(length, bool)
        for start in windows.starts:
            assert 0 <= start <= length - windows.size
            covered[start : start + windows.size] = True
        assert covered.all()


def test_an_axis_shorter_than_the_window_gets_one_window_of_its_length() -> None:
    windows = axis_windows(20, 32, 16)
    assert (windows.size, windows.starts) == (20, (0,))


def test_the_last_window_shifts_inside() -> None:
    assert axis_windows(50, 32, 16).starts == (0, 16, 18)
    assert axis_windows(48, 32, 16).starts == (0, 16)


def test_windows_are_cut_row_by_row_where_the_origins_say() -> None:
    layout = WindowLayout.of(50, 70, WindowConfig(size=32, stride=16))
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    windows = layout.cut(image)
    assert windows.shape == (len(layout), 32, 32, 3) == (3 * 4, 32, 32, 3)
    assert layout.origins == sorted(layout.origins)
    for window, (top, left) in zip(windows, layout.origins, strict=True):
        assert np.array_equal(window, image[top : top + 32, left : left + 32])


def test_a_layout_knows_its_sizes() -> None:
    layout = WindowLayout.of(20, 70, WindowConfig(size=32, stride=32))
    assert layout.window_size == (20, 32)
    assert layout.image_size == (20, 70)
    assert layout.origins == [(0, 0), (0, 32), (0, 38)]
