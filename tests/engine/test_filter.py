"""Purification's form "filter": the head's own labels, of the words that are left."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ovss_core.check import validate
from ovss_core.class_purification.room import Room
from ovss_core.config import CliptraseConfig, LabelConfig, PurificationConfig, SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.finite import raise_first
from ovss_core.engine.proposal import Proposals
from ovss_core.errors import ConfigError
from ovss_core.evaluation.oracle import restrict
from ovss_core.images.resize import normalize, resize_image
from ovss_core.images.windows import WindowLayout
from ovss_core.results import Segmentation
from ovss_core.vocabulary import Vocabulary
from tests import oracles, oracles_freecp
from tests.tiny import WORDS, random_picture, slow_tower, tiny_clip, tiny_config, tiny_text

SIZES = [(37, 80), (48, 60), (45, 33)]
PICTURES = [random_picture(*size) for size in SIZES]
MANY = ["background: wall, floor", *WORDS, *(f"thing {number}" for number in range(30))]
"""More phrases than the tiny tower has dimensions, so that features cross from stage to stage in place of scores."""
FILTER = PurificationConfig(
    variant="filter", crop_size=16, redundancy_threshold=0.02, ambiguity_threshold=0.3
)


def _engine(config: SegmenterConfig, lines: list[str]) -> SegmentationEngine:
    return SegmentationEngine(config, tiny_clip(), tiny_text(lines))


def _config(host: str = "sclip", labels: LabelConfig | None = None, **changes: Any) -> SegmenterConfig:
    return tiny_config(host, replace(FILTER, **changes), labels)


def _own_labels(engine: SegmentationEngine, picture: np.ndarray, words: list[int]) -> np.ndarray:
    """Label without purification, with a few words of the engine's vocabulary."""
    unpurified = replace(engine.config, purification=PurificationConfig("none"))
    alone = SegmentationEngine(unpurified, tiny_clip(), restrict(engine.text, words))
    found: np.ndarray = np.array(words)[alone.segment([picture])[0].label_map]
    return found


def _offered(result: Segmentation, engine: SegmentationEngine) -> list[int]:
    background = engine.text.vocabulary.background_index
    return sorted(
        {entry.index for entry in result.kept} | ({background} if background is not None else set())
    )


# sclip's own form differs from the one that FreeCP's code reads
@pytest.mark.parametrize("lines", [WORDS, ["background: wall, floor", *WORDS], MANY])
@pytest.mark.parametrize("host", ["sclip", "cliper"])
def test_labels_are_the_heads_own_of_the_words_that_are_left(lines: list[str], host: str) -> None:
    labels = LabelConfig(min_area=0.02)
    engine = _engine(_config(host, labels, ambiguity=False), lines)
    results = engine.segment(PICTURES)
    assert any(result.removed for result in results)
    assert len({len(result.kept) for result in results}) > 1 or host == "cliper"
    for picture, result in zip(PICTURES, results, strict=True):
        if host == "cliper":  # its scores are shares of all words
            assert {entry.index for entry in result.present} <= set(_offered(result, engine))
            continue
        expected = _own_labels(engine, picture, _offered(result, engine))
        assert (result.label_map != expected).mean() <= 0.002


@pytest.mark.parametrize("lines", [WORDS, ["background: wall, floor", *WORDS]])
@pytest.mark.parametrize("host", ["sclip", "naclip"])
def test_from_pixels_to_labels_as_the_formulas_say_one_patch_at_a_time(lines: list[str], host: str) -> None:
    size = (30, 44)
    config = _config(
        host, LabelConfig(min_area=0.02), ambiguity=False, score_scale=20.0, redundancy_threshold=0.1
    )
    engine, picture = _engine(config, lines), random_picture(*size, seed=3)
    vocabulary = engine.text.vocabulary
    phrases, phrase_class = engine.text.phrase_embeddings.double().numpy(), vocabulary.phrase_class.tolist()

    # every window through the tower: the host's own features, and the mean attention that FreeCP spreads maps along
    resized = resize_image(picture, 48, 160, 8)
    layout = WindowLayout.of(resized.shape[0], resized.shape[1], config.windows)
    windows = normalize(torch.from_numpy(layout.cut(resized))).double().numpy()
    tower = slow_tower(tiny_clip().model.visual)
    features = [
        oracles.unit_rows(oracles.last_block_head(tower, window, host, purified=False)) for window in windows
    ]
    attention = np.stack([tower.mean_attention(window) for window in windows])

    # the image as a whole decides; a background that competes is never removed
    grid = layout.window_size[0] // 8, layout.window_size[1] // 8
    decided = oracles_freecp.purify_unit(
        np.stack(features),
        attention,
        phrases,
        phrase_class,
        len(vocabulary),
        grid,
        scale=20.0,
        redundancy=0.1,
        ambiguity=1.0,
    )
    background = vocabulary.background_index
    kept = [k for k in decided.kept if k != background]
    offered = sorted({*kept} | ({background} if background is not None else set()))

    # the host's own cosines of what is left, stitched, and SFP's rule; what was removed has no share in the softmax
    left = [place for place, k in enumerate(phrase_class) if k in offered]
    stitched = []
    for place in left:
        maps = np.stack([(window @ phrases[place]).reshape(grid) for window in features])
        stitched.append(oracles.stitch(maps, layout.origins, layout.window_size, layout.image_size, size))
    expected, _ = oracles.label_pixels(
        np.stack(stitched),
        [offered.index(phrase_class[place]) for place in left],
        len(offered),
        scale=config.labels.logit_scale,
        background=None if background is None else offered.index(background),
        min_area=0.02,
    )

    [result] = engine.segment([picture])
    assert result.removed
    assert [entry.index for entry in result.kept if entry.index != background] == kept
    for entry in result.kept:
        assert entry.index == background or entry.score == pytest.approx(
            decided.scores[entry.index], abs=1e-4
        )
    assert (result.label_map != np.array(offered)[expected]).mean() <= 0.002


def test_decisions_are_those_of_the_image_form() -> None:
    filtered = _engine(_config("naclip"), WORDS).segment(PICTURES)
    purified = _engine(_config("naclip", variant="image"), WORDS).segment(PICTURES)
    assert any(result.groups for result in filtered)
    for first, second in zip(filtered, purified, strict=True):
        assert list(first.kept) == list(second.kept)
        assert first.groups == second.groups


def test_winners_take_their_boxes_largest_box_first() -> None:
    engine = _engine(_config("naclip"), MANY)
    plain = _engine(_config("naclip", ambiguity=False), MANY).segment(PICTURES)
    renamed = 0
    for result, before in zip(engine.segment(PICTURES), plain, strict=True):
        expected = before.label_map.copy()
        boxes = [(group.classes, box) for group in result.groups for box in group.boxes]
        boxes.sort(key=lambda found: -(found[1].x1 - found[1].x0) * (found[1].y1 - found[1].y0))
        for classes, box in boxes:
            area = expected[box.y0 : box.y1, box.x0 : box.x1]
            if box.winner is not None:
                area[np.isin(area, classes)] = box.winner
        renamed += int((expected != before.label_map).sum())
        assert np.array_equal(result.label_map, expected)
    assert renamed


def test_a_proposal_that_crosses_processes_gives_the_same_mask() -> None:
    engine = _engine(_config(labels=LabelConfig(confidence="pixel")), MANY)
    for wave, proposals in engine.propose_all(engine.gather(PICTURES)):
        whole = raise_first(engine.finish(proposals))
        windows = engine.config.windows
        patches = proposals.maps.shape[2]
        crossed = Proposals.from_rows(
            proposals.to_rows(), windows, patches, engine.config.purification.crop_size
        )
        assert wave.sizes == crossed.sizes
        for first, second in zip(whole, raise_first(engine.finish(crossed)), strict=True):
            assert np.array_equal(first.label_map, second.label_map)
            assert first.groups == second.groups
            assert first.confidence is not None
            assert second.confidence is not None
            assert first.confidence.margins is not None
            assert second.confidence.margins is not None
            assert np.array_equal(first.confidence.margins, second.confidence.margins)


def test_fixed_shapes_give_what_counting_gives() -> None:
    engine = _engine(_config(), MANY)
    counted = engine.segment(PICTURES)
    engine.room = Room()
    for first, second in zip(counted, engine.segment(PICTURES), strict=True):
        assert np.array_equal(first.label_map, second.label_map)


def test_an_image_that_loses_every_word_is_its_best_word() -> None:
    for result in _engine(_config(redundancy_threshold=0.49), WORDS).segment(PICTURES):
        assert [entry.index for entry in result.present] == [entry.index for entry in result.kept]
        assert len(result.kept) == 1


@pytest.mark.parametrize("refine", ["pamr", "tlp"])
def test_a_refiner_sees_the_words_that_are_left(refine: str) -> None:
    engine = _engine(replace(_config(), refine=refine), MANY)
    for result in engine.segment(PICTURES):
        kept = {entry.index for entry in result.kept}
        assert {entry.index for entry in result.present} <= kept | {0}


def test_what_cannot_be_filtered_is_refused() -> None:
    words = Vocabulary.from_names(["background", *WORDS])
    with pytest.raises(ConfigError, match="residual"):
        validate(_config(labels=LabelConfig(background="residual")), words)
    with pytest.raises(ConfigError, match="clustering"):
        validate(replace(_config("cliptrase"), cliptrase=CliptraseConfig(True)), words)
