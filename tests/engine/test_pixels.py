import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ovss_core.config import WindowConfig
from ovss_core.images.pixels import ImagePixels
from ovss_core.images.windows import WindowLayout
from tests.tiny import random_picture

SIZES = [(37, 61), (24, 24), (30, 90)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), side=st.integers(1, 20))
def test_regions_are_those_that_torch_interpolates_out_of_the_image(data: st.DataObject, side: int) -> None:
    images = [random_picture(*size, seed=place) for place, size in enumerate(SIZES)]
    layouts = tuple(WindowLayout.of(*size, WindowConfig(size=24, stride=10)) for size in SIZES)
    image, corners = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 2))
        height, width = SIZES[place]
        y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
        image.append(place)
        corners.append((x0, y0, x1, y1))
    pixels = ImagePixels.of(images, layouts)
    found = pixels.cut_regions(torch.tensor(image), torch.tensor(corners), side)
    for place, (x0, y0, x1, y1), crop in zip(image, corners, found, strict=True):
        region = torch.from_numpy(images[place][y0:y1, x0:x1].copy()).permute(2, 0, 1)[None].float()
        expected = functional.interpolate(region, (side, side), mode="bilinear")[0].permute(1, 2, 0)
        assert (crop.float() - expected).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("side", [1, 24])
def test_a_region_as_large_as_the_crop_is_cut_as_it_is(side: int) -> None:
    picture = random_picture(48, 48)
    layout = WindowLayout.of(48, 48, WindowConfig(size=24, stride=24))
    corners = torch.tensor([[11, 13, 11 + side, 13 + side]])
    [crop] = ImagePixels.of([picture], [layout]).cut_regions(torch.tensor([0]), corners, side)
    assert np.array_equal(crop.numpy(), picture[13 : 13 + side, 11 : 11 + side])


def test_windows_are_those_of_the_layouts_image_after_image() -> None:
    images = [random_picture(*size, seed=place) for place, size in enumerate(SIZES)]
    layouts = tuple(WindowLayout.of(*size, WindowConfig(size=24, stride=10)) for size in SIZES)
    expected = np.concatenate([layout.cut(image) for layout, image in zip(layouts, images, strict=True)])
    pixels = ImagePixels.of(images, layouts)
    assert np.array_equal(pixels.cut_windows(slice(3, 11)), expected[3:11])
    first = len(layouts[0]) + len(layouts[1])
    last = pixels.part(slice(2, 3), slice(first, len(pixels)))
    assert np.array_equal(last.cut_windows(slice(0, len(last))), expected[first:])
