"""The kernels of labels in Triton's interpreter against the plain forms."""

import numpy as np
import pytest
import torch

from ovss_core.class_purification.winners import LabelEdits
from ovss_core.config import LabelConfig, WindowConfig
from ovss_core.engine import label_strips, labels
from ovss_core.engine.label_strips import Labels
from ovss_core.engine.labels import PhraseRule, label_by_probability, label_by_purified_maps
from ovss_core.images.stitch import Stitcher
from ovss_core.images.windows import WindowLayout

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU `make test-gpu` runs the kernels on it"
)
SIZES = ((5, 8), (6, 7))
RESIZED = ((16, 24), (24, 16))
MARGINS = LabelConfig()
CLASSES = torch.tensor([[1, 4, 5], [2, 6, -1]])


@pytest.fixture(autouse=True, params=[2, 4], ids=["several tiles", "one tile"])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovss_core.kernels import labels_triton

    for name, size in {
        "_MAPS": request.param,
        "_MORE_MAPS": 2,
        "_PHRASES": 2,
        "_PIXELS": 8,
        "_LINES": 2,
    }.items():
        monkeypatch.setattr(labels_triton, name, size)


def _stitcher(columns: int = 2) -> Stitcher:
    layouts = tuple(WindowLayout.of(*size, WindowConfig(size=16, stride=8)) for size in RESIZED)
    return Stitcher(layouts, (2, columns), SIZES)


def _maps(count: int, columns: int = 2) -> torch.Tensor:
    windows = sum(map(len, _stitcher().layouts))
    return torch.rand(windows, count, 2 * columns, generator=torch.Generator().manual_seed(count))


def _edits() -> LabelEdits:
    boxes = np.array([[[1, 1, 7, 5], [0, 0, 5, 6]], [[2, 2, 5, 4], [0, 0, 0, 0]]])
    places = torch.tensor([[[2, 1, 2], [1, 1, 2]], [[0, 0, 2], [0, 1, 2]]])
    return LabelEdits(
        boxes, torch.from_numpy(boxes), places, torch.tensor([2, 1])
    )  # the second lies in the first


def _assert_equal(found: Labels, expected: Labels) -> None:
    for image, (height, width) in enumerate(SIZES):
        area = image, slice(height), slice(width)
        assert torch.equal(found.label_maps[area], expected.label_maps[area])
    assert torch.equal(found.pixels, expected.pixels)
    assert torch.allclose(found.confidence_sums, expected.confidence_sums, rtol=1e-5)
    assert found.margins is not None
    assert expected.margins is not None
    assert torch.allclose(found.margins.sums, expected.margins.sums, rtol=1e-5)
    assert torch.allclose(found.margins.scores, expected.margins.scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("background", "edited", "strips"), [(None, True, True), (0, True, False), (0, False, True)]
)
def test_labels_of_purified_maps_equal_the_plain_form(
    background: int | None, edited: bool, strips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stitcher, edits = _stitcher(), _edits() if edited else None
    tiled = 0.8 * stitcher.tile(_maps(3))
    expected = label_by_purified_maps(tiled, CLASSES, 7, background, stitcher, edits, MARGINS)
    monkeypatch.setattr(labels, "use_kernel", lambda tensor: True)
    if strips:
        monkeypatch.setattr(label_strips, "CPU_BUDGET", 3 * 3 * tiled.shape[3] * 7)
    _assert_equal(label_by_purified_maps(tiled, CLASSES, 7, background, stitcher, edits, MARGINS), expected)


@pytest.mark.parametrize(
    ("min_area", "background", "policy"),
    [(None, 0, "none"), (0.15, 0, "first_class"), (None, None, "first_class")],
)
def test_labels_by_probability_equal_the_plain_form(
    min_area: float | None, background: int | None, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stitcher = _stitcher()
    tiled = 0.1 * stitcher.tile(_maps(7))
    rule = PhraseRule(torch.tensor([0, 0, 1, 2, 2, 3, 4]), 5, background)
    config = LabelConfig(min_area=min_area, min_probability=0.3, background=policy)  # type: ignore[arg-type]
    expected = label_by_probability(tiled, rule, stitcher, config)
    monkeypatch.setattr(labels, "use_kernel", lambda tensor: True)
    _assert_equal(label_by_probability(tiled, rule, stitcher, config), expected)


def test_more_columns_of_the_grids_than_a_program_holds_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ovss_core.kernels import labels_triton

    stitcher = _stitcher(12)
    tiled, rule = 0.1 * stitcher.tile(_maps(3, 12)), PhraseRule(torch.tensor([0, 1, 2]), 3, None)
    plain = (
        label_by_purified_maps(tiled, CLASSES, 7, None, stitcher, _edits(), MARGINS),
        label_by_probability(tiled, rule, stitcher, MARGINS),
    )
    monkeypatch.setattr(labels, "use_kernel", lambda tensor: True)
    monkeypatch.setattr(labels_triton, "_COLUMNS", 16)
    assert stitcher.shares.shape[2] > 16
    _assert_equal(label_by_purified_maps(tiled, CLASSES, 7, None, stitcher, _edits(), MARGINS), plain[0])
    _assert_equal(label_by_probability(tiled, rule, stitcher, MARGINS), plain[1])


def test_a_score_that_is_no_number_shows_in_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    stitcher, maps = _stitcher(), _maps(3)
    maps[0, 1] = torch.nan
    monkeypatch.setattr(labels, "use_kernel", lambda tensor: True)
    found = label_by_purified_maps(stitcher.tile(maps), CLASSES, 7, None, stitcher)
    assert found.confidence_sums.isfinite().all(1).tolist() == [False, True]
