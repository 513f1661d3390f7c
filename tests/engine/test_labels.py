from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ovss_core.class_purification.winners import LabelEdits
from ovss_core.config import LabelConfig, WindowConfig
from ovss_core.engine import label_strips
from ovss_core.engine.label_strips import Labels
from ovss_core.engine.labels import PhraseRule, label_by_probability, label_by_purified_maps
from ovss_core.images.stitch import Stitcher
from ovss_core.images.windows import WindowLayout
from ovss_core.results import SURE_MARGIN
from tests import oracles

PHRASE_CLASS = [0, 0, 1, 2, 2, 2, 3, 4]
SIZES = ((29, 41), (40, 24), (7, 60))
"""Three images of one window size and different sizes, labelled in one call."""


def _stitcher(sizes: tuple[tuple[int, int], ...] = SIZES[:1]) -> Stitcher:
    resized = ((24, 40), (32, 16), (16, 24))
    layouts = tuple(WindowLayout.of(*size, WindowConfig(size=16, stride=8)) for size in resized[: len(sizes)])
    return Stitcher(layouts, (2, 2), sizes)


def _rule(phrase_class: list[int] = PHRASE_CLASS, background: int | None = None) -> PhraseRule:
    return PhraseRule(torch.tensor(phrase_class), max(phrase_class) + 1, background)


def _cosines(stitcher: Stitcher, phrases: int = len(PHRASE_CLASS), seed: int = 0) -> Tensor:
    windows = sum(map(len, stitcher.layouts))
    generator = torch.Generator().manual_seed(seed)
    return stitcher.tile(0.1 * torch.randn(windows, phrases, 4, generator=generator))


def _assert_equal_to_oracle(rule: PhraseRule, stitcher: Stitcher, config: LabelConfig) -> None:
    tiled = _cosines(stitcher, len(rule.phrase_class))
    found = label_by_probability(tiled, rule, stitcher, config)
    stitched = stitcher.stitch(tiled).double().numpy()
    for image, (height, width) in enumerate(stitcher.sizes):
        expected, best = oracles.label_pixels(
            stitched[image, :, :height, :width],
            rule.phrase_class.tolist(),
            rule.classes,
            scale=config.logit_scale,
            background=rule.background,
            min_probability=config.min_probability,
            min_area=config.min_area,
        )
        assert np.array_equal(found.label_maps[image, :height, :width].numpy(), expected)
        every = range(rule.classes)
        assert found.pixels[image].tolist() == [(expected == k).sum() for k in every]
        sums = [best[expected == k].sum() for k in every]
        np.testing.assert_allclose(found.confidence_sums[image].numpy(), sums, rtol=1e-5)


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES])
@pytest.mark.parametrize("background", [None, 0, 2])
@pytest.mark.parametrize("min_area", [None, 0.0, 0.15, 0.9])
@pytest.mark.parametrize("min_probability", [0.0, 0.4])
def test_labels_equal_the_rule_written_pixel_by_pixel(
    sizes: tuple[tuple[int, int], ...],
    background: int | None,
    min_area: float | None,
    min_probability: float,
) -> None:
    config = LabelConfig(min_area=min_area, min_probability=min_probability)
    _assert_equal_to_oracle(_rule(background=background), _stitcher(sizes), config)


def test_a_class_has_its_best_phrases_probability_not_their_sum() -> None:
    stitcher = _stitcher(((24, 40),))
    tiled = torch.tensor([0.20, 0.20, 0.21])[None, :, None, None].expand_as(_cosines(stitcher, 3))
    found = label_by_probability(tiled, _rule([0, 0, 1]), stitcher, LabelConfig(logit_scale=1.0))
    assert (found.label_maps == 1).all()
    share = np.exp(0.21) / (np.exp(0.21) + 2 * np.exp(0.20))
    assert found.confidence_sums[0].tolist() == pytest.approx([0, 24 * 40 * share], rel=1e-5)


def test_a_vocabulary_of_one_class_gets_every_pixel_with_certainty() -> None:
    stitcher = _stitcher()
    for config in (LabelConfig(), LabelConfig(min_area=0.5), LabelConfig(min_area=1.0)):
        found = label_by_probability(_cosines(stitcher, 1), _rule([0]), stitcher, config)
        assert (found.label_maps == 0).all()
        assert found.confidence_sums[0].tolist() == pytest.approx([29 * 41])


def _assert_same(first: Labels, second: Labels) -> None:
    assert torch.equal(first.label_maps, second.label_maps)
    assert torch.equal(first.pixels, second.pixels)
    assert torch.allclose(first.confidence_sums, second.confidence_sums)


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stitcher, config = _stitcher(), LabelConfig(min_area=0.1, min_probability=0.3)
    tiled, rule = _cosines(stitcher), _rule(background=1)
    whole = label_by_probability(tiled, rule, stitcher, config)
    monkeypatch.setattr(label_strips, "CPU_BUDGET", 8 * 41 * 3)
    _assert_same(label_by_probability(tiled, rule, stitcher, config), whole)


@pytest.mark.parametrize("min_area", [None, 0.1])
def test_permuting_the_classes_permutes_the_labels(min_area: float | None) -> None:
    stitcher, config = _stitcher(), LabelConfig(min_area=min_area)
    tiled, rule = _cosines(stitcher), _rule()
    order = torch.tensor([3, 0, 4, 1, 2])  # old class k becomes order[k]
    renamed = order[rule.phrase_class]
    place = renamed.argsort(stable=True)
    first = label_by_probability(tiled, rule, stitcher, config)
    second = label_by_probability(tiled[:, place], PhraseRule(renamed[place], 5, None), stitcher, config)
    assert torch.equal(order[first.label_maps.long()], second.label_maps.long())
    assert torch.allclose(first.confidence_sums, second.confidence_sums[:, order])


def test_background_none_gives_every_pixel_a_foreground_class() -> None:
    stitcher = _stitcher()
    tiled, rule = _cosines(stitcher), _rule(background=2)
    found = label_by_probability(tiled, rule, stitcher, LabelConfig(background="none", min_probability=0.9))
    assert (found.label_maps != 2).all()
    competing = label_by_probability(tiled, rule, stitcher, LabelConfig()).label_maps
    others = competing != 2
    assert 0 < int(others.sum()) < others.numel()
    assert torch.equal(found.label_maps[others], competing[others])


def test_extreme_logits_give_finite_confidence() -> None:
    stitcher = _stitcher()
    config = LabelConfig(logit_scale=1000.0, min_area=0.2)
    found = label_by_probability(10 * _cosines(stitcher), _rule(), stitcher, config)
    assert found.confidence_sums.isfinite().all()


def test_more_than_255_classes_are_labelled_in_full() -> None:
    stitcher = _stitcher()
    tiled = _cosines(stitcher, 300)
    found = label_by_probability(tiled, _rule(list(range(300))), stitcher, LabelConfig())
    assert torch.equal(found.label_maps.long(), stitcher.stitch(tiled).argmax(1))
    assert found.label_maps.max() > 255


def _purified(stitcher: Stitcher, kept: int, seed: int = 3) -> Tensor:
    windows = sum(map(len, stitcher.layouts))
    return stitcher.tile(torch.rand(windows, kept, 4, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("background", [None, 0])
def test_purified_labels_are_the_largest_map_or_what_is_left(background: int | None) -> None:
    stitcher = _stitcher(SIZES)
    classes = torch.tensor([[1, 4, 5], [2, 6, -1], [3, -1, -1]])
    tiled = 0.8 * _purified(stitcher, 3)
    found = label_by_purified_maps(tiled, classes, 7, background, stitcher)
    stitched = stitcher.stitch(tiled).numpy()
    for image, (height, width) in enumerate(SIZES):
        kept = [index for index in classes[image].tolist() if index >= 0]
        counts, sums = np.zeros(7), np.zeros(7)
        for y in range(height):
            for x in range(width):
                best = int(stitched[image, : len(kept), y, x].argmax())
                score, label = stitched[image, best, y, x], kept[best]
                if background is not None and 1 - score >= score:
                    score, label = 1 - score, background
                assert found.label_maps[image, y, x] == label
                counts[label] += 1
                sums[label] += score
        assert found.pixels[image].tolist() == counts.tolist()
        np.testing.assert_allclose(found.confidence_sums[image].numpy(), sums, rtol=1e-5)
        assert background is None or counts[background] > 0


def test_the_background_wins_a_tie() -> None:
    stitcher = _stitcher()
    half = torch.full_like(_purified(stitcher, 1), 0.5)
    found = label_by_purified_maps(half, torch.tensor([[1]]), 2, 0, stitcher)
    assert (found.label_maps == 0).all()


def test_an_image_that_keeps_nothing_is_all_background() -> None:
    stitcher = _stitcher()
    found = label_by_purified_maps(_purified(stitcher, 1), torch.tensor([[-1]]), 3, 2, stitcher)
    assert (found.label_maps == 2).all()
    assert found.confidence_sums[0].tolist() == [0, 0, 29 * 41]


def _edits(stitcher: Stitcher) -> LabelEdits:
    """Per image: class place 0 and 2 become 2 in a large box, then 0 and 1 become 0 in a smaller one."""
    boxes = np.array(
        [[[3, 2, 30, 25], [0, 0, 20, 30], [0, 0, 0, 0]], [[10, 5, 15, 9], [0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    places = torch.tensor([[[2, 1, 2], [2, 1, 2], [0, 1, 2]], [[0, 0, 2], [0, 1, 2], [0, 1, 2]]])
    return LabelEdits(boxes, torch.from_numpy(boxes), places, torch.tensor([2, 1, 0]))


def test_inside_a_box_the_winner_takes_the_largest_score_of_its_group() -> None:
    stitcher = _stitcher(SIZES)
    tiled, classes = _purified(stitcher, 3), torch.tensor([[0, 1, 2]] * 3)
    edits = _edits(stitcher)
    found = label_by_purified_maps(tiled, classes, 3, None, stitcher, edits)
    scores = stitcher.stitch(tiled).clone()
    for boxes, places in zip(edits.boxes, edits.places, strict=True):
        for image, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            area = scores[image, :, y0:y1, x0:x1]
            moved = torch.zeros_like(area)
            for place, becomes in enumerate(places[image].tolist()):
                moved[becomes] = torch.maximum(moved[becomes], area[place])
            scores[image, :, y0:y1, x0:x1] = moved
    for image, (height, width) in enumerate(SIZES):
        expected = scores[image, :, :height, :width].argmax(0)
        assert torch.equal(found.label_maps[image, :height, :width].long(), expected)


def test_edits_see_every_strip_at_its_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    stitcher = _stitcher(SIZES)
    tiled, classes = _purified(stitcher, 3), torch.tensor([[0, 1, 2]] * 3)
    whole = label_by_purified_maps(tiled, classes, 3, None, stitcher, _edits(stitcher))
    plain = label_by_purified_maps(tiled, classes, 3, None, stitcher)
    assert not torch.equal(whole.label_maps, plain.label_maps)
    monkeypatch.setattr(label_strips, "CPU_BUDGET", 3 * 3 * 60 * 7)
    _assert_same(label_by_purified_maps(tiled, classes, 3, None, stitcher, _edits(stitcher)), whole)


def test_a_pixel_that_nobody_claims_is_not_renamed() -> None:
    stitcher = _stitcher(SIZES[:1])
    tiled = torch.zeros_like(_purified(stitcher, 3))
    edits = _edits(stitcher).of_images(slice(0, 1))
    found = label_by_purified_maps(tiled, torch.tensor([[0, 1, 2]]), 3, None, stitcher, edits)
    assert (found.label_maps == 0).all()


def _assert_margins(
    found: Labels,
    image: int,
    size: tuple[int, int],
    best: np.ndarray,
    second: np.ndarray,
    labels_: np.ndarray,
) -> None:
    """Compare with the winning and the second score of every pixel, [height, width]."""
    height, width = size
    assert found.margins is not None
    assert found.margins.pictures is not None
    margin = best - second
    picture = found.margins.pictures[image, :height, :width].numpy()
    np.testing.assert_allclose(picture / 255, margin, atol=0.5 / 255 + 1e-5)
    np.testing.assert_allclose(float(found.margins.scores[image]), best.sum(), rtol=1e-5)
    np.testing.assert_allclose(float(found.margins.sums[image]), margin.sum(), rtol=1e-4)
    near = np.abs(margin - SURE_MARGIN) < 1e-5
    assert abs(int(found.margins.sure[image]) - int((margin >= SURE_MARGIN).sum())) <= near.sum()
    ignored = found.label_maps[image, :height, :width].numpy() == 255
    assert np.array_equal(ignored, picture < 0.1 * 255)
    for index in range(found.pixels.shape[1]):
        assert int(found.pixels[image, index]) == ((labels_ == index) & ~ignored).sum()


UNSURE = LabelConfig(confidence="pixel", min_confidence=0.1, logit_scale=30.0)


@pytest.mark.parametrize("background", [None, 0])
def test_the_margin_of_a_pixel_is_how_far_its_class_is_ahead_of_the_second_one(
    background: int | None,
) -> None:
    stitcher = _stitcher(SIZES)
    classes = torch.tensor([[1, 4, 5], [2, 6, -1], [3, -1, -1]])
    tiled = 0.8 * _purified(stitcher, 3)
    found = label_by_purified_maps(tiled, classes, 7, background, stitcher, config=UNSURE)
    stitched = stitcher.stitch(tiled).double().numpy()
    for image, (height, width) in enumerate(SIZES):
        kept = [index for index in classes[image].tolist() if index >= 0]
        scores = stitched[image, : len(kept), :height, :width]
        if background is not None:
            scores = np.concatenate([1 - scores.max(0, keepdims=True), scores])
            kept = [background, *kept]
        ranked = np.sort(np.concatenate([np.zeros_like(scores[:1]), scores]), axis=0)
        _assert_margins(
            found, image, (height, width), ranked[-1], ranked[-2], np.array(kept)[scores.argmax(0)]
        )


def test_a_group_that_was_settled_counts_as_one_class_for_the_margin() -> None:
    stitcher = _stitcher(SIZES)
    tiled, classes = _purified(stitcher, 3), torch.tensor([[0, 1, 2]] * 3)
    boxes = np.array([[[3, 2, 30, 25], [0, 0, 20, 30], [0, 0, 0, 0]]])
    places = torch.tensor([[[2, 1, 2], [0, 0, 2], [0, 1, 2]]])
    edits = LabelEdits(boxes, torch.from_numpy(boxes), places, torch.tensor([1, 1, 0]))
    found = label_by_purified_maps(tiled, classes, 3, None, stitcher, edits, UNSURE)
    groups = [(0, 2, 2), (0, 1, 0), (0, 0, 0)]
    stitched = stitcher.stitch(tiled).double().numpy()
    for image, (height, width) in enumerate(SIZES):
        scores = stitched[image, :, :height, :width]
        best, second, label = scores.max(0), np.zeros((height, width)), scores.argmax(0)
        x0, y0, x1, y1 = boxes[0, image]
        first, other, winner = groups[image]
        for y in range(height):
            for x in range(width):
                taken = {int(label[y, x])}
                if y0 <= y < y1 and x0 <= x < x1 and label[y, x] in (first, other):
                    taken, label[y, x] = {first, other}, winner
                second[y, x] = max((scores[k, y, x] for k in range(3) if k not in taken), default=0.0)
        _assert_margins(found, image, (height, width), best, second, label)


@pytest.mark.parametrize("min_area", [None, 0.15])
def test_synonyms_of_the_winner_are_no_second_class(min_area: float | None) -> None:
    stitcher, rule = _stitcher(SIZES), _rule()
    config = replace(UNSURE, min_area=min_area)
    found = label_by_probability(10 * _cosines(stitcher), rule, stitcher, config)
    plain = label_by_probability(
        10 * _cosines(stitcher), rule, stitcher, LabelConfig(logit_scale=30.0, min_area=min_area)
    )
    logits = 30.0 * stitcher.stitch(10 * _cosines(stitcher)).double().numpy()
    for image, (height, width) in enumerate(SIZES):
        each = logits[image, :, :height, :width]
        probability = np.exp(each - each.max(0)) / np.exp(each - each.max(0)).sum(0)
        by_class = np.stack([probability[np.array(PHRASE_CLASS) == k].max(0) for k in range(5)])
        label = plain.label_maps[image, :height, :width].numpy()
        assert plain.margins is not None
        assert plain.margins.pictures is None
        candidates = np.arange(5) if min_area is None else np.unique(label)
        allowed = by_class[candidates]
        place = np.searchsorted(candidates, label)[None]
        best = np.take_along_axis(allowed, place, 0)[0]
        np.put_along_axis(allowed, place, 0, 0)
        _assert_margins(found, image, (height, width), best, allowed.max(0), label)


def test_margins_do_not_depend_on_strips_and_cost_nothing_where_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stitcher = _stitcher(SIZES)
    tiled, classes = _purified(stitcher, 3), torch.tensor([[0, 1, 2]] * 3)
    whole = label_by_purified_maps(tiled, classes, 3, None, stitcher, _edits(stitcher), UNSURE)
    assert label_by_purified_maps(tiled, classes, 3, None, stitcher).margins is None
    monkeypatch.setattr(label_strips, "CPU_BUDGET", 3 * 3 * 60 * 7)
    parts = label_by_purified_maps(tiled, classes, 3, None, stitcher, _edits(stitcher), UNSURE)
    assert whole.margins is not None
    assert parts.margins is not None
    for found, expected in zip(parts.margins.tensors(), whole.margins.tensors(), strict=True):
        torch.testing.assert_close(found, expected)
