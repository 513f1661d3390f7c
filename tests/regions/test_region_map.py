import io

import numpy as np
import pytest
from PIL import Image

from ovss_core.config import WindowConfig
from ovss_core.errors import ImageError
from ovss_core.images.windows import PatchGrid, WindowLayout
from ovss_core.regions import RegionMap
from ovss_core.regions.region_map import count_in_windows

RNG = np.random.default_rng(5)


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def drawn(height: int = 23, width: int = 31, most: int = 9) -> np.ndarray:
    return RNG.integers(0, most + 1, (height, width))


@pytest.mark.parametrize(
    "kind", ["gray", "palette", "sixteen bits", "thirty-two bits", "panoptic", "black and white"]
)
def test_index_pngs_of_any_depth_give_the_numbers_that_they_hold(kind: str) -> None:
    most = {"sixteen bits": 60_000, "thirty-two bits": 90_000, "panoptic": 70_000, "black and white": 1}.get(
        kind, 255
    )
    values = drawn(most=most)
    if kind == "gray":
        data = png(Image.fromarray(values.astype(np.uint8)))
    elif kind == "palette":
        image = Image.fromarray(values.astype(np.uint8), "P")
        image.putpalette(list(range(256)) * 3)
        data = png(image)
    elif kind == "sixteen bits":
        data = png(Image.fromarray(values.astype(np.uint16)))
    elif kind == "thirty-two bits":
        data = png(Image.fromarray(values.astype(np.int32)), "TIFF")
    elif kind == "panoptic":
        parts = [values % 256, values // 256 % 256, values // 65536]
        data = png(Image.fromarray(np.stack(parts, 2).astype(np.uint8)))
    else:
        data = png(Image.fromarray(values.astype(bool)))
    regions = RegionMap.decode(data, 10_000)
    assert regions.ids.dtype == np.int32
    np.testing.assert_array_equal(regions.ids, values)


def test_what_is_no_region_map_says_what_to_give() -> None:
    with pytest.raises(
        ImageError, match=r"the region map cannot be read: .*mode RGBA; give a PNG with one channel"
    ):
        RegionMap.decode(png(Image.new("RGBA", (3, 3))), 100)
    with pytest.raises(ImageError, match="the region map cannot be read"):
        RegionMap.decode(b"no picture", 100)
    with pytest.raises(ImageError, match="more than max_pixels"):
        RegionMap.decode(png(Image.new("L", (30, 30))), 100)
    with pytest.raises(ImageError, match=r"numbered from -1 to 3; give numbers from 0"):
        RegionMap.of_array(np.array([[-1, 3]]))
    with pytest.raises(ImageError, match="are no region map; give whole numbers"):
        RegionMap.of_array(np.zeros((3, 3)))
    with pytest.raises(ImageError, match=r"the region map has 2 x 3 pixels, the image 3 x 2 \(upright\)"):
        RegionMap.of_array(np.zeros((2, 3), int)).require_size((3, 2))


@pytest.mark.parametrize("most", [0, 3, 5_000, 2**31 - 1])
def test_numbers_are_listed_with_each_pixels_place(most: int) -> None:
    regions = RegionMap.of_array(drawn(most=most))
    names, place = regions.numbered
    assert names.tolist() == sorted(set(regions.ids.reshape(-1).tolist()))
    np.testing.assert_array_equal(names[place], regions.ids)
    again = RegionMap.from_bytes(regions.to_bytes(), regions.size)
    np.testing.assert_array_equal(again.ids, regions.ids)


@pytest.mark.parametrize("patch", [4, 7])
@pytest.mark.parametrize(("height", "width"), [(20, 30), (33, 90), (64, 48)])
def test_patches_read_the_pixel_under_their_upper_left_corner(height: int, width: int, patch: int) -> None:
    regions = RegionMap.of_array(drawn(50, 70, 200))
    layout = WindowLayout.of(height, width, WindowConfig(size=32, stride=16))
    found = regions.on_patches(layout, PatchGrid(patch))
    for window, (top, left) in zip(found, layout.origins, strict=True):
        expected = [
            regions.ids[y * 50 // height, x * 70 // width]
            for y in range(top, top + layout.window_size[0] - patch + 1, patch)
            for x in range(left, left + layout.window_size[1] - patch + 1, patch)
        ]
        assert window.tolist() == expected


def test_regions_are_counted_anew_in_every_window() -> None:
    tables = [np.array([[7, 0, 7, 900], [3, 3, 5, 4]]), np.array([[0, 0, 0, 0]])]
    ids, most = count_in_windows(tables)
    assert ids.tolist() == [[1, 0, 1, 2], [1, 1, 3, 2], [0, 0, 0, 0]]
    assert most == 3
