import numpy as np
import pytest
import torch
from torch import Tensor

from ovss_core.config import LabelConfig, WindowConfig
from ovss_core.inference import labels
from ovss_core.inference.labels import PhraseScores, label_by_probability, label_by_purified_maps
from ovss_core.inference.stitching import Stitcher
from ovss_core.inference.windows import WindowLayout
from tests import oracles

PHRASE_CLASS = [0, 0, 1, 2, 2, 2, 3, 4]


def _stitcher(original: tuple[int, int] = (29, 41)) -> Stitcher:
    layout = WindowLayout.of(24, 40, WindowConfig(size=16, stride=8))
    return Stitcher(layout, (2, 2), original)


def _scores(
    stitcher: Stitcher, phrase_class: list[int] = PHRASE_CLASS, background: int | None = None, seed: int = 0
) -> PhraseScores:
    generator = torch.Generator().manual_seed(seed)
    maps = 0.1 * torch.randn(len(phrase_class), len(stitcher.layout), 2, 2, generator=generator)
    return PhraseScores(
        stitcher.side_by_side(maps), torch.tensor(phrase_class), max(phrase_class) + 1, background
    )


def _assert_equal_to_oracle(scores: PhraseScores, stitcher: Stitcher, config: LabelConfig) -> None:
    found = label_by_probability(scores, stitcher, config)
    labels_, best = oracles.label_pixels(
        stitcher.stitch(scores.tiled).double().numpy(),
        scores.phrase_class.tolist(),
        scores.classes,
        scale=config.logit_scale,
        background=scores.background,
        min_probability=config.min_probability,
        min_area=config.min_area,
    )
    assert np.array_equal(found.label_map.numpy(), labels_)
    sums = [best[labels_ == k].sum() for k in range(scores.classes)]
    np.testing.assert_allclose(found.confidence_sums.numpy(), sums, rtol=1e-5)


@pytest.mark.parametrize("background", [None, 0, 2])
@pytest.mark.parametrize("min_area", [None, 0.0, 0.15, 0.9])
@pytest.mark.parametrize("min_probability", [0.0, 0.4])
def test_labels_equal_the_rule_written_pixel_by_pixel(
    background: int | None, min_area: float | None, min_probability: float
) -> None:
    stitcher = _stitcher()
    config = LabelConfig(min_area=min_area, min_probability=min_probability)
    _assert_equal_to_oracle(_scores(stitcher, background=background), stitcher, config)


def test_a_class_has_its_best_phrases_probability_not_their_sum() -> None:
    stitcher = _stitcher((24, 40))
    shape = stitcher.side_by_side(torch.zeros(1, len(stitcher.layout), 2, 2)).shape[1:]
    tiled = torch.tensor([0.20, 0.20, 0.21])[:, None, None].expand(3, *shape)
    scores = PhraseScores(tiled.contiguous(), torch.tensor([0, 0, 1]), 2, None)
    found = label_by_probability(scores, stitcher, LabelConfig(logit_scale=1.0))
    assert (found.label_map == 1).all()
    share = np.exp(0.21) / (np.exp(0.21) + 2 * np.exp(0.20))
    assert found.confidence_sums.tolist() == pytest.approx([0, 24 * 40 * share], rel=1e-5)


def test_a_vocabulary_of_one_class_gets_every_pixel_with_certainty() -> None:
    stitcher = _stitcher()
    for config in (LabelConfig(), LabelConfig(min_area=0.5), LabelConfig(min_area=1.0)):
        found = label_by_probability(_scores(stitcher, [0]), stitcher, config)
        assert (found.label_map == 0).all()
        assert found.confidence_sums.tolist() == pytest.approx([29 * 41])


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stitcher, config = _stitcher(), LabelConfig(min_area=0.1, min_probability=0.3)
    scores = _scores(stitcher, background=1)
    whole = label_by_probability(scores, stitcher, config)
    monkeypatch.setattr(labels, "STRIP_BUDGET", 8 * 41 * 3)
    stripped = label_by_probability(scores, stitcher, config)
    assert torch.equal(whole.label_map, stripped.label_map)
    assert torch.allclose(whole.confidence_sums, stripped.confidence_sums)


@pytest.mark.parametrize("min_area", [None, 0.1])
def test_permuting_the_classes_permutes_the_labels(min_area: float | None) -> None:
    stitcher, config = _stitcher(), LabelConfig(min_area=min_area)
    scores = _scores(stitcher)
    order = torch.tensor([3, 0, 4, 1, 2])  # old class k becomes order[k]
    renamed = order[scores.phrase_class]
    place = renamed.argsort(stable=True)
    permuted = PhraseScores(scores.tiled[place], renamed[place], 5, None)
    first, second = (label_by_probability(s, stitcher, config) for s in (scores, permuted))
    assert torch.equal(order[first.label_map.long()], second.label_map.long())
    assert torch.allclose(first.confidence_sums, second.confidence_sums[order])


def test_background_none_gives_every_pixel_a_foreground_class() -> None:
    stitcher = _stitcher()
    scores = _scores(stitcher, background=2)
    found = label_by_probability(scores, stitcher, LabelConfig(background="none", min_probability=0.9))
    assert (found.label_map != 2).all()
    competing = label_by_probability(scores, stitcher, LabelConfig()).label_map
    others = competing != 2
    assert 0 < int(others.sum()) < others.numel()
    assert torch.equal(found.label_map[others], competing[others])


def test_extreme_logits_give_finite_confidence() -> None:
    stitcher = _stitcher()
    scores = _scores(stitcher)
    loud = PhraseScores(10 * scores.tiled, scores.phrase_class, scores.classes, None)
    found = label_by_probability(loud, stitcher, LabelConfig(logit_scale=1000.0, min_area=0.2))
    assert found.confidence_sums.isfinite().all()


def _purified(stitcher: Stitcher, kept: int, seed: int = 3) -> Tensor:
    maps = torch.rand(kept, len(stitcher.layout), 2, 2, generator=torch.Generator().manual_seed(seed))
    return stitcher.side_by_side(maps)


@pytest.mark.parametrize("background", [None, 0])
def test_purified_labels_are_the_largest_map_or_what_is_left(background: int | None) -> None:
    stitcher = _stitcher()
    tiled, kept = 0.8 * _purified(stitcher, 3), torch.tensor([1, 4, 5])
    found = label_by_purified_maps(tiled, kept, 7, background, stitcher)
    stitched = stitcher.stitch(tiled).numpy()
    counts, sums = np.zeros(7), np.zeros(7)
    for y in range(29):
        for x in range(41):
            best = int(stitched[:, y, x].argmax())
            score, label = stitched[best, y, x], int(kept[best])
            if background is not None and 1 - score >= score:
                score, label = 1 - score, background
            assert found.label_map[y, x] == label
            counts[label] += 1
            sums[label] += score
    np.testing.assert_allclose(found.confidence_sums.numpy(), sums, rtol=1e-5)
    assert background is None or counts[background] > 0


def test_the_background_wins_a_tie() -> None:
    stitcher = _stitcher()
    half = torch.full_like(_purified(stitcher, 1), 0.5)
    found = label_by_purified_maps(half, torch.tensor([1]), 2, 0, stitcher)
    assert (found.label_map == 0).all()


def test_nothing_kept_is_all_background_or_an_error() -> None:
    stitcher = _stitcher()
    nothing, none = _purified(stitcher, 1)[:0], torch.zeros(0, dtype=torch.int64)
    found = label_by_purified_maps(nothing, none, 3, 2, stitcher)
    assert (found.label_map == 2).all()
    assert found.confidence_sums.tolist() == [0, 0, 29 * 41]
    with pytest.raises(ValueError, match="no class was kept and there is no background"):
        label_by_purified_maps(nothing, none, 3, None, stitcher)


def test_edits_see_every_strip_at_its_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    stitcher = _stitcher()
    tiled, kept = _purified(stitcher, 2), torch.tensor([0, 1])

    def first_ten_rows_to_class_one(scores: Tensor, first_row: int) -> Tensor:
        inside = torch.arange(first_row, first_row + scores.shape[1]) < 10
        scores[1, inside] = 2
        return scores

    whole = label_by_purified_maps(tiled, kept, 2, None, stitcher, first_ten_rows_to_class_one)
    plain = label_by_purified_maps(tiled, kept, 2, None, stitcher)
    monkeypatch.setattr(labels, "STRIP_BUDGET", 2 * 41 * 7)
    stripped = label_by_purified_maps(tiled, kept, 2, None, stitcher, first_ten_rows_to_class_one)
    assert (whole.label_map[:10] == 1).all()
    assert torch.equal(whole.label_map[10:], plain.label_map[10:])
    assert torch.equal(whole.label_map, stripped.label_map)
