"""Heads that see the words equal their loop-written forms, and score other words as if each joined alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.config import CliperConfig
from ovss_core.dense_heads import HeadOptions
from ovss_core.dense_heads.cliper import CliperHead
from ovss_core.dense_heads.scoring import EncodedWindows, ScoringHead, Words, join_weights
from ovss_core.errors import ConfigError
from tests import oracles_hosts
from tests.tiny import random_windows, slow_tower, tiny_tower

SIZES = [(32, 32), (24, 40), (8, 48)]


def unit_rows(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, 24, generator=torch.Generator().manual_seed(seed)), dim=-1)


def encoded(encoder: ImageEncoder, head: ScoringHead, windows: Tensor) -> EncodedWindows:
    trace = encoder.trace(windows, head.request(encoder.depth))
    features = F.normalize(head.features(encoder, trace), dim=-1)
    return EncodedWindows(trace.grid, features, head.evidence(encoder, trace, windows))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("background", [(), (0, 3)])
def test_cliper_equals_its_loop_written_form(size: tuple[int, int], background: tuple[int, ...]) -> None:
    tower, windows, phrases = tiny_tower(), random_windows(1, *size), unit_rows(6)
    encoder, head = ImageEncoder(tower), CliperHead(HeadOptions(settings=CliperConfig(20.0, 0.3)))
    words = Words(phrases, torch.tensor([index in background for index in range(6)]), unit_rows(0))
    expected = oracles_hosts.cliper(
        slow_tower(tower),
        encoder.embed(windows, "bilinear")[0].double().numpy(),
        phrases.double().numpy(),
        background,
        scale=20.0,
        threshold=0.3,
    )
    found = head.scores(encoder, encoded(encoder, head, windows), words).phrases
    np.testing.assert_allclose(found[0].numpy(), expected, atol=2e-4)


def test_another_word_scores_in_cliper_as_if_it_alone_joined_the_vocabulary() -> None:
    encoder, head, windows = ImageEncoder(tiny_tower()), CliperHead(HeadOptions()), random_windows(2, 32, 40)
    phrases, others = unit_rows(5), unit_rows(3, seed=1)
    kept = encoded(encoder, head, windows)
    none = torch.zeros(5, dtype=torch.bool)
    together = head.scores(encoder, kept, Words(phrases, none, others))
    assert together.others.shape == (2, 3, 20)
    for place in range(3):
        # as a background phrase it takes part, and does not move the mean of the others
        joined = Words(
            torch.cat([phrases, others[place : place + 1]]), torch.tensor([*none.tolist(), True]), others[:0]
        )
        alone = head.scores(encoder, kept, joined).phrases[:, -1]
        assert torch.allclose(together.others[:, place], alone, atol=1e-5)


def test_the_logits_of_cliper_give_its_scores_back_as_shares() -> None:
    head = CliperHead(HeadOptions())
    scores = torch.rand(2, 5, 9, generator=torch.Generator().manual_seed(0)) + 0.01
    shares = head.logits(scores, scale=100.0).softmax(1)
    assert torch.allclose(shares, scores / scores.sum(1, keepdim=True), atol=1e-6)
    assert head.logits(torch.zeros(1, 2, 1), 100.0).isfinite().all()


def test_weights_join_as_a_softmax_with_one_more_column() -> None:
    logits, others = 5 * torch.randn(4, 7), 5 * torch.randn(4, 3)
    shares, joined = join_weights(logits, others)
    assert torch.allclose(shares, logits.softmax(-1), atol=1e-6)
    for place in range(3):
        whole = torch.cat([logits, others[:, place : place + 1]], 1).softmax(-1)
        assert torch.allclose(joined[:, place], whole[:, -1], atol=1e-6)


def test_the_mean_of_a_vocabulary_of_background_alone_is_that_of_all() -> None:
    phrases = unit_rows(3)
    only = Words(phrases, torch.ones(3, dtype=torch.bool), phrases[:0])
    plain = Words(phrases, torch.zeros(3, dtype=torch.bool), phrases[:0])
    assert torch.allclose(only.foreground_mean, plain.foreground_mean)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_scale": 0.0}, r"cliper\.text_scale is 0\.0; give a number above 0"),
        ({"attention_threshold": 1.5}, r"cliper\.attention_threshold is 1\.5; give a number from 0 to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliperConfig(**values)
