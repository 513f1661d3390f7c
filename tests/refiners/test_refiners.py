import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.check import validate
from ovss_core.config import (
    REFINER_SETTINGS,
    LabelConfig,
    ModelConfig,
    PamrConfig,
    PurificationConfig,
    SegmenterConfig,
    TlpConfig,
    WindowConfig,
)
from ovss_core.engine import refined
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.label_strips import Labels
from ovss_core.engine.labels import PhraseRule, label_by_probability, label_by_purified_maps
from ovss_core.engine.refined import RefinedScores
from ovss_core.errors import ConfigError
from ovss_core.head_names import refiner_names
from ovss_core.images.neighbors import neighbor_weights, spread_to_neighbors
from ovss_core.images.stitch import Stitcher
from ovss_core.images.windows import WindowLayout
from ovss_core.refiners import REFINERS, Guide, Piece, Refiner, ScoreMaps, base, build_refiner, pamr, tlp
from ovss_core.refiners.pamr import PamrRefiner, rectangles
from ovss_core.refiners.tlp import TlpRefiner, own_similarity, propagate
from tests import oracles_refiners
from tests.tiny import random_picture, tiny_clip, tiny_config, tiny_text

SIZE = (29, 41)


def _stitcher(size: tuple[int, int] = SIZE, resized: tuple[int, int] = (24, 40)) -> Stitcher:
    layout = WindowLayout.of(*resized, WindowConfig(size=16, stride=8))
    return Stitcher((layout,), (2, 2), (size,))


def _scores(stitcher: Stitcher, maps: int = 5, seed: int = 0) -> ScoreMaps:
    generator = torch.Generator().manual_seed(seed)
    drawn = 0.1 * torch.randn(len(stitcher.layouts[0]), maps, 4, generator=generator)
    vectors = F.normalize(torch.randn(maps, 6, generator=generator), dim=-1)
    return ScoreMaps(stitcher.tile(drawn)[0], stitcher, vectors)


def _guide(size: tuple[int, int] = SIZE, resized: tuple[int, int] = (24, 40)) -> Guide:
    picture = torch.from_numpy(random_picture(*resized, seed=3)).float()
    return Guide((picture / 60 - 2).movedim(2, 0).contiguous(), size)


def _refined(refiner: Refiner, scores: ScoreMaps, guide: Guide) -> Tensor:
    result = torch.full((len(scores), *scores.size), torch.nan)
    for piece in refiner.refine(scores, guide):
        area = result[piece.maps, piece.rows, piece.columns]
        assert area.isnan().all(), "pieces overlap"
        result[piece.maps, piece.rows, piece.columns] = piece.values
    return result


def _everything(scores: ScoreMaps) -> Tensor:
    height, width = scores.size
    return scores.part(slice(0, len(scores)), slice(0, height), slice(0, width))


def test_every_file_s_refiner_is_found_by_name_without_running_it() -> None:
    assert refiner_names() == ["none", *REFINERS]
    assert set(REFINERS) == {"pamr", "tlp"}
    assert build_refiner("none") is None
    with pytest.raises(ConfigError, match=r"unknown refiner 'pamir'.*pamr"):
        build_refiner("pamir")


@pytest.mark.parametrize("dilations", [(1,), (2, 5), (1, 3, 40)])
def test_pamr_equals_the_formula_written_pixel_by_pixel(dilations: tuple[int, ...]) -> None:
    scores, guide = _scores(_stitcher()), _guide()
    picture = guide.part(slice(0, 29), slice(0, 41))
    weights = neighbor_weights(picture, dilations)
    expected = oracles_refiners.pamr_weights(picture.double().numpy(), dilations)
    np.testing.assert_allclose(weights.numpy(), expected, atol=2e-6)
    found = _refined(PamrRefiner(PamrConfig(3, dilations)), scores, guide)
    wanted = oracles_refiners.pamr(
        _everything(scores).double().numpy(), picture.double().numpy(), dilations, 3
    )
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


def test_several_pictures_flow_as_each_of_them_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures, maps = (torch.randn(2, count, 9, 14, generator=generator) for count in (3, 4))
    weights = neighbor_weights(pictures, (1, 3))
    found = spread_to_neighbors(maps, weights, (1, 3))
    for place in range(2):
        alone = neighbor_weights(pictures[place], (1, 3))
        assert torch.allclose(weights[place], alone, atol=1e-6)
        assert torch.allclose(found[place], spread_to_neighbors(maps[place], alone, (1, 3)), atol=1e-6)


def test_a_flat_picture_weighs_all_neighbors_the_same() -> None:
    weights = neighbor_weights(torch.full((3, 9, 7), 0.7), (1, 2))
    assert torch.allclose(weights, torch.full_like(weights, 1 / 16))


def test_pamr_in_rectangles_and_blocks_gives_what_it_gives_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stitcher = _stitcher((60, 75), (40, 48))
    scores, guide = _scores(stitcher), _guide((60, 75), (40, 48))
    refiner = PamrRefiner(PamrConfig(3, (2, 3)))
    whole = _refined(refiner, scores, guide)
    monkeypatch.setattr(pamr, "numbers_at_once", lambda device: 24 * 31 * 33)
    monkeypatch.setattr(pamr, "CACHED", 2 * 31 * 33)
    pieces = list(refiner.refine(scores, guide))
    assert len({(piece.rows.start, piece.columns.start) for piece in pieces}) > 6
    assert len({piece.maps.start for piece in pieces}) > 1
    assert torch.allclose(_refined(refiner, scores, guide), whole, atol=1e-7)


@pytest.mark.parametrize("size", [(37, 1000), (1000, 37), (800, 900), (5, 5)])
def test_rectangles_cover_an_image_once_and_hold_little(size: tuple[int, int]) -> None:
    reach, area = 20, 120 * 120
    seen = np.zeros(size, int)
    for rows, columns in rectangles(size, reach, area):
        seen[rows, columns] += 1
        tall = min(rows.stop + reach, size[0]) - max(rows.start - reach, 0)
        wide = min(columns.stop + reach, size[1]) - max(columns.start - reach, 0)
        assert tall * wide <= area
    assert (seen == 1).all()


def test_a_reach_beyond_the_room_still_leaves_rectangles_of_a_bounded_size() -> None:
    sides = [rows.stop - rows.start for rows, _ in rectangles((5000, 5000), 160, 100)]
    assert max(sides) == 160


def test_pamr_s_step_commutes_with_any_mixture_of_maps() -> None:
    scores, guide = _scores(_stitcher()), _guide()
    mix = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    mixed = ScoreMaps(torch.einsum("km,mhw->khw", mix, scores.tiled), scores.stitcher, scores.vectors[:3])
    refiner = PamrRefiner()
    wanted = torch.einsum("km,mhw->khw", mix, _refined(refiner, scores, guide))
    assert torch.allclose(_refined(refiner, mixed, guide), wanted, atol=1e-6)


@pytest.mark.parametrize("grid", [(7, 9), (1, 12), (12, 1)])
def test_tlp_s_steps_converge_to_the_system_s_solution(grid: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(4, *grid, generator=generator, dtype=torch.float64)
    gray = torch.randn(*grid, generator=generator, dtype=torch.float64)
    vectors = F.normalize(torch.randn(4, 6, generator=generator, dtype=torch.float64), dim=-1)
    found = propagate(scores, gray, own_similarity(vectors), 400)
    wanted = oracles_refiners.laplacian_solution(scores.numpy(), gray.numpy(), vectors.numpy())
    np.testing.assert_allclose(
        found.numpy(), wanted, atol=1e-6
    )  # the guards end the steps at residuals of 1e-6


def test_tlp_on_cells_of_several_pixels_pools_solves_and_upsamples() -> None:
    stitcher = _stitcher((29, 41))
    scores, guide = _scores(stitcher), _guide()
    found = _refined(TlpRefiner(TlpConfig(grid=10, steps=400)), scores, guide)
    cell = (3, 4)  # round(29 / 10), round(41 / 10): 9 x 10 cells; the last rows and column are left out
    picture = guide.part(slice(0, 29), slice(0, 41))
    gray = torch.einsum("c,chw->hw", torch.tensor([0.299, 0.587, 0.114]), picture)
    pooled = F.avg_pool2d(_everything(scores)[None], cell)[0].double().numpy()
    solved = oracles_refiners.laplacian_solution(
        pooled, F.avg_pool2d(gray[None, None], cell)[0, 0].double().numpy(), scores.vectors.double().numpy()
    )
    assert pooled.shape[1:] == (9, 10)
    wanted = F.interpolate(torch.from_numpy(solved)[None], (29, 41), mode="bilinear")[0]
    assert torch.allclose(found.double(), wanted, atol=1e-6)


def test_tlp_in_strips_gives_what_it_gives_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, guide = _scores(_stitcher()), _guide()
    refiner = TlpRefiner(TlpConfig(grid=10))
    whole = _refined(refiner, scores, guide)
    monkeypatch.setattr(tlp, "numbers_at_once", lambda device: 5 * 41 * 4)
    assert len(list(refiner.refine(scores, guide))) > 5
    assert torch.allclose(_refined(refiner, scores, guide), whole, atol=1e-6)


class _Same(Refiner):
    """Gives the maps as they are, in small pieces."""

    def refine(self, scores: ScoreMaps, guide: Guide) -> Iterator[Piece]:
        height, width = scores.size
        for rows in base.chunks(height, 7):
            for maps in base.chunks(len(scores), 2):
                columns = slice(0, width)
                yield Piece(maps, rows, columns, scores.part(maps, rows, columns))


def _assert_equally_sure(plain: Labels, running: Labels) -> None:
    assert plain.margins is not None
    assert running.margins is not None
    assert torch.allclose(plain.margins.sums, running.margins.sums, rtol=1e-5)
    assert plain.margins.pictures is not None
    assert running.margins.pictures is not None
    steps = plain.margins.pictures.int() - running.margins.pictures.int()
    assert steps.abs().max() <= 1


@pytest.mark.parametrize("held", [0, 1 << 24])
@pytest.mark.parametrize("min_area", [None, 0.15, 0.9])
@pytest.mark.parametrize("background", ["none", "first_class"])
def test_running_winners_over_blocks_give_the_labels_of_all_maps_at_once(
    held: int, min_area: float | None, background: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refined, "_HELD", held)
    stitcher = _stitcher()
    scores = _scores(stitcher, 8)
    rule = PhraseRule(torch.tensor([0, 0, 1, 2, 2, 2, 3, 4]), 5, 0)
    config = LabelConfig(
        min_area=min_area,
        min_probability=0.4,
        background=background,  # type: ignore[arg-type]
        confidence="pixel",
    )
    tiled = scores.tiled[None]
    plain = label_by_probability(tiled, rule, stitcher, config)
    running = label_by_probability(tiled, rule, stitcher, config, RefinedScores(_Same(), scores, _guide()))
    assert torch.equal(plain.label_maps, running.label_maps)
    assert torch.equal(plain.pixels, running.pixels)
    assert torch.allclose(plain.confidence_sums, running.confidence_sums, rtol=1e-5)
    _assert_equally_sure(plain, running)


@pytest.mark.parametrize("residual", [None, 1])
def test_purified_maps_in_blocks_give_the_labels_of_all_maps_at_once(residual: int | None) -> None:
    stitcher = _stitcher()
    scores = replace(_scores(stitcher), tiled=_scores(stitcher).tiled.abs() * 4)
    tiled, classes = scores.tiled[None], torch.tensor([[0, 2, 3, 5, 6]])
    sure = LabelConfig(confidence="pixel")
    plain = label_by_purified_maps(tiled, classes, 8, residual, stitcher, None, sure)
    source = RefinedScores(_Same(), scores, _guide())
    running = label_by_purified_maps(tiled, classes, 8, residual, stitcher, None, sure, source)
    assert torch.equal(plain.label_maps, running.label_maps)
    assert torch.allclose(plain.confidence_sums, running.confidence_sums, rtol=1e-5)
    _assert_equally_sure(plain, running)


IMAGES = [random_picture(*size, seed=9) for size in ((50, 70), (64, 48), (90, 55), (50, 70))]
LINES = ["background: sky, wall", "cat", "dog, puppy", "grass", "road", "sofa"]


def _engine(refine: str, purify: str, lines: list[str] = LINES) -> SegmentationEngine:
    purification = PurificationConfig(method=purify, crop_size=16)  # type: ignore[arg-type]
    config = replace(tiny_config("sfp", purification), refine=refine)
    return SegmentationEngine(config, tiny_clip(), tiny_text(lines))


@pytest.mark.parametrize("purify", ["none", "freecp"])
@pytest.mark.parametrize("name", ["pamr", "tlp"])
def test_a_batch_gives_what_its_images_give_alone_and_on_both_roads(name: str, purify: str) -> None:
    engine = _engine(name, purify)
    together = engine.segment(IMAGES)
    plain = _engine("none", purify).segment(IMAGES)
    assert any(
        not np.array_equal(one.label_map, other.label_map) for one, other in zip(together, plain, strict=True)
    )
    for image, found in zip(IMAGES, together, strict=True):
        [alone] = engine.segment([image])
        assert np.array_equal(alone.label_map, found.label_map)
        [wave] = engine.gather([image])
        rows = engine.propose(wave).wait().to_rows()
        assert rows[0]["guide"].nbytes == wave.layouts[0].image_size[0] * wave.layouts[0].image_size[1] * 3
        [stored] = engine.finish(engine.proposals_of_rows(rows))
        assert np.array_equal(stored.label_map, found.label_map)  # type: ignore[union-attr]


def test_without_a_refiner_no_picture_travels_with_a_proposal() -> None:
    engine = _engine("none", "freecp")
    [wave] = engine.gather(IMAGES[:1])
    assert engine.propose(wave).wait().to_rows()[0]["guide"].nbytes == 0


def test_more_phrases_than_dimensions_are_refined_in_blocks() -> None:
    lines = [f"word {number}" for number in range(40)]
    results = _engine("pamr", "none", lines).segment(IMAGES[:2])
    assert all(
        result.label_map.shape == image.shape[:2] for result, image in zip(results, IMAGES, strict=False)
    )


def test_settings_of_a_refiner_that_is_not_asked_for_are_named() -> None:
    config = SegmenterConfig(ModelConfig("demo"), pamr=PamrConfig(iterations=3))
    assert "pamr.iterations (it goes with --refine pamr)" in validate(config)[0]
    assert validate(replace(config, refine="pamr")) == []
    with pytest.raises(ConfigError, match="unknown refiner 'plain'"):
        validate(replace(config, refine="plain"))


def test_only_the_chosen_refiner_decides_a_run() -> None:
    plain, other = SegmenterConfig().deciding(), SegmenterConfig(pamr=PamrConfig(3)).deciding()
    assert plain == other
    assert not REFINER_SETTINGS & set(plain)
    chosen = SegmenterConfig(refine="pamr", pamr=PamrConfig(3)).deciding()
    assert chosen["pamr"] == {"iterations": 3, "dilations": [8, 16]}
    assert "tlp" not in chosen


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (lambda: PamrConfig(0), "pamr.iterations is 0"),
        (lambda: PamrConfig(dilations=()), r"pamr.dilations is \[\]"),
        (lambda: PamrConfig(dilations=(8, 0)), r"pamr.dilations is \[8, 0\]"),
        (lambda: TlpConfig(grid=0), "tlp.grid is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: type, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings()


def test_settings_come_back_from_plain_values() -> None:
    config = SegmenterConfig(refine="pamr", pamr=PamrConfig(3, (1, 2)))
    assert SegmenterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict() == json.loads(json.dumps(config.to_dict()))
