"""CaR against loops that share none of its code, and what no word order, background or broken number may do to it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.config import CarConfig
from ovss_core.images.resize import CLIP_MEAN, CLIP_STD, normalize
from ovss_core.vocabulary_filter.activation import Sight, activation_maps, channel_weights, spread_boxes
from ovss_core.vocabulary_filter.car import FilterWords, WordFilter
from tests import oracles_car
from tests.tiny import random_picture, slow_tower, tiny_tower

SCALE, GAIN, THRESHOLD = 10.0, 8.0, 0.2
SIDE = 32
"""Of a picture that is the tower's own size, so that nothing is resized."""


def _rows(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, 24, generator=generator), dim=-1)


def _filter(encoder: ImageEncoder, words: FilterWords, last_block: bool = True, batch: int = 5) -> WordFilter:
    settings = CarConfig(THRESHOLD, GAIN, last_block=last_block)
    count = max(words.classes) + 1
    return WordFilter(settings, words, count, encoder, (CLIP_MEAN, CLIP_STD), SCALE, 0.4, batch)


@pytest.mark.parametrize("quick", [True, False])
def test_maps_follow_the_slopes_of_the_probability(quick: bool) -> None:
    tower = tiny_tower(quick_gelu=quick)
    encoder, slow = ImageEncoder(tower), slow_tower(tower)
    words, background = _rows(3), _rows(2, seed=1)
    window = normalize(random_picture(SIDE, SIDE))
    sight = Sight.of(encoder, window[None])
    states, _ = slow.hidden(window.double().numpy())
    every = torch.cat([words, background])
    weights, _, found = channel_weights(encoder, sight, every, 3, SCALE)
    expected, _ = oracles_car.channel_weights(slow, states[-2], every.double().numpy(), 3, SCALE)
    assert found.sum().item() == pytest.approx(1)
    assert weights.numpy() == pytest.approx(expected, abs=1e-3 * np.abs(expected).max())

    maps = activation_maps(encoder, sight, words, background, SCALE)
    plain, spread, _ = oracles_car.word_maps(
        slow, window.double().numpy(), words.double().numpy(), background.double().numpy(), SCALE
    )
    assert maps.numpy() == pytest.approx(plain, abs=1e-3)
    assert spread_boxes(maps, sight, 0.4).numpy() == pytest.approx(spread, abs=1e-3)


@pytest.mark.parametrize("last_block", [True, False])
def test_words_leave_in_rounds_as_the_loops_say(last_block: bool) -> None:
    tower = tiny_tower()
    words, background = _rows(3, 5, seed=2), _rows(3, 2, seed=3)
    given = FilterWords((0, 1, 2, 3, 5), words, background)
    picture = random_picture(SIDE, SIDE, seed=4)
    kept, history = oracles_car.rounds(
        *(slow_tower(tower), picture, words.double().numpy(), background.double().numpy()),
        scale=SCALE,
        gain=GAIN,
        threshold=THRESHOLD,
        last_block=last_block,
    )
    [found] = _filter(ImageEncoder(tower), given, last_block).filter([torch.from_numpy(picture)])
    assert len(history) > 1
    assert 0 < len(kept) < 5
    assert found.kept == tuple(given.classes[word] for word in kept)
    for (classes, scores), (left, expected) in zip(found.history, history, strict=True):
        assert classes == tuple(given.classes[word] for word in left)
        assert scores == pytest.approx(expected, abs=1e-3)
    assert np.isnan(found.scores[4])  # the background, which is none of the words


def test_the_order_of_words_does_not_matter() -> None:
    words, order = _rows(3, 4, seed=2), [2, 0, 3, 1]
    encoder, picture = ImageEncoder(tiny_tower()), torch.from_numpy(random_picture(40, 56))
    [found] = _filter(encoder, FilterWords((0, 1, 2, 3), words, words[:, :0])).filter([picture])
    [other] = _filter(encoder, FilterWords((0, 1, 2, 3), words[:, order], words[:, :0])).filter([picture])
    assert {order[word] for word in other.kept} == set(found.kept)
    assert other.scores == pytest.approx(found.scores[order], abs=1e-4)


def test_a_word_that_is_activated_nowhere_is_tried_without_the_background() -> None:
    encoder = ImageEncoder(tiny_tower())
    sight = Sight.of(encoder, normalize(random_picture(SIDE, SIDE))[None])
    states = encoder.blocks[-1].forward(sight.tokens)
    sure = F.normalize(encoder.project(states)[:, 1:].mean(1), dim=-1)
    words = _rows(2)
    # beside the image's own feature no word has a probability that float32 can hold
    weights, _, _ = channel_weights(encoder, sight, torch.cat([words, sure]), 2, 500.0)
    assert not weights.any()
    maps = activation_maps(encoder, sight, words, sure, 500.0)
    assert torch.equal(maps, activation_maps(encoder, sight, words, sure[:0], 500.0))
    assert maps.any()


def test_scores_that_are_no_numbers_end_the_rounds() -> None:
    words = _rows(3, 4)
    broken = FilterWords((0, 1, 2, 3), torch.cat([words[:2], words[2:] * torch.nan]), words[:, :0])
    [found] = _filter(ImageEncoder(tiny_tower()), broken).filter([torch.from_numpy(random_picture(16, 24))])
    assert not found.finite
    assert found.rounds == 1
