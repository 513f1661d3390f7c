"""The kernels in Triton's interpreter against the plain forms, and compiled for a card that is not there."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from ovss_core.class_purification import regions as regions_module
from ovss_core.class_purification.regions import box_union
from ovss_core.kernels.class_sums import add_class_sums, add_margin_sums

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU `make test-gpu` runs the kernels on it"
)

WINDING = """
#.#####.
#.#...#.
#.#.#.#.
#.#.###.
#.#.....
#.######
#......#
########
"""


def _regions(maps: int, height: int, width: int, share: float) -> torch.Tensor:
    return torch.rand(maps, height, width, generator=torch.Generator().manual_seed(height)) < share


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (1, 6), (14, 14)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_unions_of_boxes_equal_the_form_by_scipy(height: int, width: int, share: float) -> None:
    from ovss_core.kernels.parts_triton import launch_union

    maps = _regions(3, height, width, share)
    limits = max(height - 1, 1), max(width - 1, 1)
    assert torch.equal(launch_union(maps, limits), box_union(maps))


@pytest.mark.parametrize("diagonal", [True, False])
def test_parts_are_named_by_their_last_place_and_bounded_however_they_wind(diagonal: bool) -> None:
    from ovss_core.kernels.parts_triton import launch_parts

    winding = torch.tensor([[place == "#" for place in row] for row in WINDING.split()])
    maps = torch.cat([winding[None], _regions(4, 8, 8, 0.45)])
    corners, labels = launch_parts(maps, diagonal)
    for index, region in enumerate(maps.numpy()):
        parts, count = ndimage.label(region, np.ones((3, 3)) if diagonal else None)
        names = labels[index].view(8, 8).numpy()
        assert set(np.unique(names)) - {0} == {
            1 + int(np.flatnonzero(parts == part)[-1]) for part in range(1, count + 1)
        }
        for part, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            name = names[parts == part]
            assert (name == name[0]).all()
            expected = [columns.start, rows.start, columns.stop, rows.stop]
            assert corners[index, name[0] - 1].tolist() == expected


@pytest.mark.parametrize("masked", [True, False])
def test_class_sums_equal_the_plain_form(masked: bool) -> None:
    from ovss_core.kernels.class_sums_triton import launch_class_sums

    chance = torch.Generator().manual_seed(3)
    label = torch.randint(0, 9, (2, 70, 90), generator=chance).where(torch.arange(90) % 7 > 0, 4)
    confidence = torch.rand(label.shape, generator=chance)
    inside = torch.rand(label.shape, generator=chance) < 0.7 if masked else None
    expected, found = (
        (torch.zeros(2, 12, dtype=torch.int64), torch.zeros(2, 12, dtype=torch.float64)) for _ in range(2)
    )
    add_class_sums(label, confidence, inside, *expected)
    launch_class_sums(label, confidence, inside, *found)
    assert torch.equal(found[0], expected[0])
    assert torch.allclose(found[1], expected[1], rtol=1e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_margin_sums_equal_the_plain_form(masked: bool) -> None:
    from ovss_core.kernels.class_sums_triton import launch_margin_sums

    chance = torch.Generator().manual_seed(4)
    confidence, second = torch.rand(2, 2, 70, 90, generator=chance)
    inside = torch.rand(confidence.shape, generator=chance) < 0.7 if masked else None
    expected, found = (
        (*torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)) for _ in range(2)
    )
    add_margin_sums(confidence, second, inside, 0.2, *expected)
    launch_margin_sums(confidence, second, inside, 0.2, *found)
    assert 0 < expected[2][0] < confidence[0].numel() / 2
    assert torch.equal(found[2], expected[2])
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6)


def test_the_forms_of_a_gpu_without_triton_give_the_same_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = _regions(20, 14, 14, 0.4)
    expected = box_union(maps)
    monkeypatch.setattr(regions_module, "use_kernel", lambda tensor: False)
    assert torch.equal(regions_module._union_on_device(maps), expected)
