"""CaR's rounds: scores by loops, pictures by what they show, images of one call as alone, and the labels that follow."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ovss_core.api import encode_words
from ovss_core.check import validate
from ovss_core.clip.text import CAR_PROMPTS, EncodedVocabulary
from ovss_core.config import CarConfig, LabelConfig, PurificationConfig, SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.errors import ConfigError, ImageError
from ovss_core.evaluation.oracle import restrict
from ovss_core.results import Segmentation
from ovss_core.vocabulary import Vocabulary
from ovss_core.vocabulary_filter.activation import Sight, channel_weights
from ovss_core.vocabulary_filter.car import FilterWords, WordFilter
from ovss_core.vocabulary_filter.judging import score_words, those_that_stay
from ovss_core.vocabulary_filter.visual_prompts import prompt_picture
from pipelines.label.checks import check_label
from pipelines.label.options import WordOptions
from pipelines.label.stages import FinishStage, ProposeStage, SegmentStage
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from tests.tiny import WORDS, random_picture, random_windows, tiny_clip, tiny_config, tiny_encoder

PICTURES = [random_picture(*size) for size in ((37, 80), (48, 60), (45, 33))]
CAR = PurificationConfig("car", score_scale=20.0)
LINES = ["background: wall, floor", *WORDS]


def _config(host: str = "sclip", car: CarConfig | None = None) -> SegmenterConfig:
    config = tiny_config(host, CAR, LabelConfig())
    return replace(config, car=car or CarConfig(0.2, gain=6.0))


def _png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def text() -> EncodedVocabulary:
    return encode_words(tiny_clip(), _config(), Vocabulary.from_names(LINES))


@pytest.fixture(scope="module")
def engine(text: EncodedVocabulary) -> SegmentationEngine:
    return SegmentationEngine(_config(), tiny_clip(), text)


@pytest.fixture(scope="module")
def results(engine: SegmentationEngine) -> list[Segmentation]:
    return engine.segment(PICTURES)


def _rounds(engine: SegmentationEngine) -> WordFilter:
    rounds = engine.finisher._filter
    assert rounds is not None
    return rounds


def test_scores_as_the_formula_says_one_word_at_a_time() -> None:
    generator = torch.Generator().manual_seed(3)
    pictures, words = (
        F.normalize(torch.randn(size, generator=generator), dim=-1) for size in ((4, 6), (3, 4, 6))
    )
    expected = []
    for picture in range(4):
        shares = [0.0] * 4
        for prompt in range(3):
            powers = [math.exp(7.0 * float(words[prompt, word] @ pictures[picture])) for word in range(4)]
            shares = [share + power / sum(powers) / 3 for share, power in zip(shares, powers, strict=True)]
        expected.append([math.exp(5.0 * share) for share in shares])
    found = score_words(pictures, words, 7.0, 5.0)
    assert found.tolist() == pytest.approx([row[word] / sum(row) for word, row in enumerate(expected)])


def test_words_above_the_threshold_stay_and_the_best_where_none_is() -> None:
    scores = torch.tensor([0.2, 0.5, 0.3])
    assert those_that_stay(scores, 0.25).tolist() == [False, True, True]
    assert those_that_stay(scores, 0.5).tolist() == [False, True, False]


def test_gradients_are_those_of_small_steps() -> None:
    encoder = tiny_encoder()
    sight = Sight.of(encoder, random_windows(1, 32, 40))
    words = F.normalize(torch.randn(3, 24, generator=torch.Generator().manual_seed(1)), dim=-1)
    weights, channels, before = channel_weights(encoder, sight, words, 2, 4.0)
    block, step, patches = encoder.blocks[-1], 1e-2, len(channels)
    assert weights.shape == (2, channels.shape[1])
    for channel in (0, 5, 11):
        moved = []
        for sign in (1, -1):  # all patches at once: the sum of the derivatives
            normed = block.normalize(sight.tokens).clone()
            normed[:, -patches:, channel] += sign * step
            features = encoder.project(block.forward_normed(sight.tokens, normed)[:, -patches:])
            mean = F.normalize(features[0].float().mean(0), dim=0)
            moved.append((4.0 * (words @ mean)).softmax(0)[:2])
        slope = (moved[0] - moved[1]) / (2 * step) / patches
        assert torch.allclose(weights[:, channel], slope, atol=2e-5)
    assert float(before.sum()) == pytest.approx(1)


@pytest.mark.parametrize("prompt", ["circle_blur", "blur_gray"])
def test_a_picture_is_clear_inside_the_mask_alone(prompt: str) -> None:
    picture = random_picture(40, 50)
    mask = np.zeros((2, 40, 50), bool)
    mask[0, 10:30, 12:40] = True
    shown, nowhere = prompt_picture(picture, mask, prompt)  # type: ignore[arg-type]
    inside = mask[0].copy()
    if prompt == "circle_blur":
        red = (shown == (255, 0, 0)).all(-1)
        assert red.any(0).nonzero()[0][[0, -1]].tolist() == [11, 39], "an ellipse as wide as the mask"
        inside &= ~red
    else:
        assert (nowhere == nowhere[..., :1]).all()
    assert (shown[inside] == picture[inside]).all()
    assert (shown[~mask[0]] != picture[~mask[0]]).any()


def test_words_leave_in_rounds_until_none_does(engine: SegmentationEngine) -> None:
    rounds = _rounds(engine)
    outcomes = rounds.filter([torch.from_numpy(picture) for picture in PICTURES])
    assert max(outcome.rounds for outcome in outcomes) > 1
    for outcome in outcomes:
        (first, _), *_ = outcome.history
        assert first == tuple(range(1, len(LINES))), "the background is no word"
        for (words, scores), later in zip(outcome.history, [*outcome.history[1:], None], strict=True):
            stays = tuple(word for word, score in zip(words, scores, strict=True) if score > 0.2)
            stays = stays or (words[int(scores.argmax())],)
            assert stays == (outcome.kept if later is None else later[0])
        assert len(outcome.history[-1][0]) == len(outcome.kept)
        assert np.isnan(outcome.scores[0])
        assert np.isfinite(outcome.scores[1:]).all()


def test_images_of_one_call_are_filtered_as_alone(engine: SegmentationEngine) -> None:
    given = [torch.from_numpy(picture) for picture in PICTURES]
    together = _rounds(engine).filter(given)
    for picture, outcome in zip(given, together, strict=True):
        [alone] = _rounds(engine).filter([picture])
        assert alone.kept == outcome.kept
        np.testing.assert_allclose(alone.scores, outcome.scores, atol=2e-5)


def test_labels_are_the_heads_own_of_the_words_that_stay(
    engine: SegmentationEngine, results: list[Segmentation], text: EncodedVocabulary
) -> None:
    assert len({len(result.kept) for result in results}) > 1
    plain = replace(engine.config, purification=PurificationConfig("none"))
    for picture, result in zip(PICTURES, results, strict=True):
        assert {entry.index for entry in (*result.kept, *result.removed)} == set(range(1, len(LINES)))
        words = [0, *(entry.index for entry in result.kept)]  # the background competes
        alone = SegmentationEngine(plain, tiny_clip(), restrict(text, words)).segment([picture])[0]
        assert (result.label_map == np.array(sorted(words))[alone.label_map]).mean() > 0.998
        assert not result.groups


def test_the_second_stage_filters_what_rows_bring_as_one_call_does(
    engine: SegmentationEngine, results: list[Segmentation]
) -> None:
    for picture, expected in zip(PICTURES, results, strict=True):
        [(_, proposals)] = engine.propose_all(engine.gather([picture]))
        [found] = engine.finish(engine.proposals_of_rows(proposals.to_rows()))
        assert not isinstance(found, ImageError)
        assert np.array_equal(found.label_map, expected.label_map)
        assert [entry.index for entry in found.kept] == [entry.index for entry in expected.kept]


def test_two_pools_give_the_rows_of_one(text: EncodedVocabulary) -> None:
    given = pa.table({"image": [_png(picture) for picture in PICTURES]})
    config, sent = _config(), text.to_bytes()
    proposed = ProposeStage(config, sent)(given)
    assert proposed["failure"].null_count == len(PICTURES)
    finished = FinishStage(config, sent)(proposed)
    alone = SegmentStage(config, sent)(given)
    for ours, theirs in zip(finished["result"].to_pylist(), alone["result"].to_pylist(), strict=True):
        assert ours["mask"] == theirs["mask"]
        assert [entry["index"] for entry in ours["removed"]] == [
            entry["index"] for entry in theirs["removed"]
        ]


def test_words_of_each_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--purify car reads the words of a run"):
        check_label(
            SourceOptions(parquet=str(tmp_path / "x.parquet")),
            RunOptions(str(tmp_path / "out")),
            PoolOptions(),
            _config(),
            Vocabulary.from_names(LINES),
            words=WordOptions(words_column="tags"),
        )


def test_words_travel_with_their_prompts_and_nobody_pays_for_them_otherwise(text: EncodedVocabulary) -> None:
    back = EncodedVocabulary.from_bytes(text.to_bytes())
    assert back.prompt_embeddings is not None
    assert text.prompt_embeddings is not None
    assert torch.equal(back.prompt_embeddings, text.prompt_embeddings)
    assert text.prompt_embeddings.shape[:2] == (len(CAR_PROMPTS), len(text.phrase_class))
    assert restrict(text, [0, 2]).prompt_embeddings is not None
    plain = replace(_config(), purification=PurificationConfig("none"))
    assert encode_words(tiny_clip(), plain, Vocabulary.from_names(LINES)).prompt_embeddings is None
    with pytest.raises(ConfigError, match="reads words prompt by prompt"):
        SegmentationEngine(_config(), tiny_clip(), replace(text, prompt_embeddings=None))


def test_a_vocabulary_of_one_word_and_a_background_of_no_phrase() -> None:
    words = Vocabulary.from_names(["background", "cat", "dog"])
    config = _config()
    engine = SegmentationEngine(config, tiny_clip(), encode_words(tiny_clip(), config, words))
    outcomes = _rounds(engine).filter([torch.from_numpy(PICTURES[0])])
    assert outcomes[0].kept
    given = FilterWords.of(torch.ones(9, 1, 4), np.array([0]), None)
    assert given.classes == (0,)
    assert given.background.shape == (9, 0, 4)


def test_settings_are_checked_and_idle_ones_named() -> None:
    with pytest.raises(ConfigError, match=r"car\.threshold"):
        CarConfig(threshold=1.5)
    idle = validate(replace(_config(), purification=PurificationConfig("none")))
    assert any("car.threshold (it goes with --purify car)" in line for line in idle)
    many = Vocabulary.from_names([f"word {number}" for number in range(80)])
    assert any("encodes a picture for each of 80 words" in line for line in validate(_config(), many))
