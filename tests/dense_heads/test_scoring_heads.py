"""Heads that see the words equal their loop-written forms, and score other words as if each joined alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import TraceRequest
from ovss_core.config import CliperConfig, ClipSurgeryConfig, CliptraseConfig, ResClipBase, ResClipConfig
from ovss_core.dense_heads import HeadOptions
from ovss_core.dense_heads.cliper import CliperHead
from ovss_core.dense_heads.clipsurgery import ClipSurgeryHead
from ovss_core.dense_heads.cliptrase import CliptraseHead, merge_background, vote
from ovss_core.dense_heads.clusters import Clusters, cluster_by_density, density_numbers, median
from ovss_core.dense_heads.label_feedback import label_attention, label_patches, most_frequent
from ovss_core.dense_heads.resclip import ResClipHead
from ovss_core.dense_heads.scoring import EncodedWindows, ScoringHead, Words, as_scorer, join_weights
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


@pytest.mark.parametrize("size", SIZES)
def test_cliptrase_correlates_patches_as_its_loop_written_form(size: tuple[int, int]) -> None:
    tower, windows = tiny_tower(), random_windows(1, *size)
    encoder, head = ImageEncoder(tower), CliptraseHead(HeadOptions(settings=CliptraseConfig(clustering=True)))
    expected = oracles_hosts.cliptrase_correlation(slow_tower(tower), windows[0].double().numpy())
    found = encoded(encoder, head, windows).evidence["correlation"][0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("distance", "neighbors"), [(0.6, 3), (1.1, 5), (0.01, 1), (0.01, 2), (9.0, 3)])
def test_clusters_are_those_of_a_walk_from_dense_point_to_dense_point(
    distance: float, neighbors: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(3, 4, 6, generator=generator)
    points = centers.repeat_interleave(9, 1) + 0.2 * torch.randn(3, 36, 6, generator=generator)
    points = points[:, torch.randperm(36, generator=generator)]
    numbers, counts = density_numbers(points, distance, neighbors)
    for window, found in enumerate(numbers.tolist()):
        expected = oracles_hosts.density_clusters(points[window].double().numpy(), distance, neighbors)
        assert found == expected
        assert counts[window] == max(expected) + 1


def test_a_long_chain_of_points_is_one_cluster() -> None:
    points = torch.arange(50.0)[None, torch.randperm(50), None]
    numbers, counts = density_numbers(points, 1.0, 2)
    assert counts.tolist() == [1]
    assert not numbers.any()


@pytest.mark.parametrize("shape", [(4, 4), (8, 20), (28, 28)])
def test_the_median_is_that_of_sorted_mirrored_places(shape: tuple[int, int]) -> None:
    maps = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    for found, values in zip(median(maps), maps, strict=True):
        np.testing.assert_array_equal(found.numpy(), oracles_hosts.median_filter(values.numpy()))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("distance", "neighbors"), [(0.5, 2), (0.01, 3)])
def test_the_clusters_of_cliptrase_vote_as_in_its_loop_written_form(
    size: tuple[int, int], distance: float, neighbors: int
) -> None:
    tower, windows, phrases = tiny_tower(), random_windows(1, *size), unit_rows(7)
    settings = CliptraseConfig(True, distance, neighbors)
    encoder, head = ImageEncoder(tower), CliptraseHead(HeadOptions(settings=settings))
    kept = encoded(encoder, head, windows)
    votes = head.scores(encoder, kept, Words(phrases, torch.zeros(7, dtype=torch.bool), phrases[:0])).phrases
    expected = oracles_hosts.cliptrase_votes(
        kept.evidence["correlation"][0].double().numpy(),
        kept.features[0].double().numpy(),
        phrases.double().numpy(),
        kept.grid,
        distance,
        neighbors,
    )
    assert votes[0].argmax(0).tolist() == expected
    assert torch.equal(votes.sum(1), torch.ones(1, size[0] * size[1] // 64))


def test_phrases_of_the_background_vote_together() -> None:
    clusters = Clusters(torch.zeros(1, 5, dtype=torch.int64), torch.tensor([1]), torch.zeros(1, 1, 4, 20))
    index, label = torch.zeros(1, 5, dtype=torch.int64), torch.tensor([[3, 3, 0, 1, 2]])
    assert vote(label, index, clusters, 4).tolist() == [[3] * 5]
    words = Words(unit_rows(4), torch.tensor([True, True, True, False]), unit_rows(0))
    assert vote(merge_background(label, words), index, clusters, 4).tolist() == [[0] * 5]
    assert vote(torch.tensor([[3, 2, 2, 3, 1]]), index, clusters, 4).tolist() == [[2] * 5]


def test_under_freecp_the_clusters_of_cliptrase_share_their_mean() -> None:
    encoder, windows = ImageEncoder(tiny_tower()), random_windows(2, 40, 56)
    head = CliptraseHead(HeadOptions(purified=True, settings=CliptraseConfig(True, 0.6, 2)))
    phrases, others = unit_rows(4), unit_rows(3, seed=1)
    kept = encoded(encoder, head, windows)
    tables = head.scores(encoder, kept, Words(phrases, torch.zeros(4, dtype=torch.bool), others))
    clusters = cluster_by_density(kept.evidence["correlation"], kept.grid, 0.6, 2)
    index = clusters.index_at(kept.grid).flatten(1)
    assert len(index[0].unique()) > 1
    for window in range(2):
        for cluster in index[window].unique():
            members = index[window] == cluster
            mean = kept.features[window, members].mean(0)
            assert torch.allclose(tables.phrases[window][:, members], (phrases @ mean)[:, None], atol=1e-5)
            assert torch.allclose(tables.others[window][:, members], (others @ mean)[:, None], atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (3, 5), (1, 6), (6, 6)])
def test_labels_attend_to_their_like_as_in_the_loop_written_form(grid: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(0, 3, (2, grid[0] * grid[1]), generator=generator)
    found = label_attention(label, grid)
    for window in range(2):
        expected = oracles_hosts.label_attention(label[window].tolist(), grid)
        np.testing.assert_allclose(found[window].numpy(), expected, atol=1e-6)


def test_a_patch_has_the_label_of_most_of_its_pixels_and_the_smallest_of_equals() -> None:
    label = torch.tensor([[[2, 2, 1, 3, 0], [1, 0, 3, 1, 0]]])
    assert most_frequent(label, (1, 2), 4).tolist() == [[2, 1]]  # the last column is beyond the last patch


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("base", ["naclip", "clearclip", "sclip"])
def test_the_second_pass_of_resclip_equals_its_loop_written_form(
    size: tuple[int, int], base: ResClipBase
) -> None:
    tower, windows, phrases = tiny_tower(), random_windows(1, *size), unit_rows(5)
    settings = ResClipConfig(base, 0.4, 1.5, feedback=True, feedback_weight=0.6, feedback_threshold=0.3)
    encoder, head = ImageEncoder(tower), ResClipHead(HeadOptions(settings=settings))
    kept = encoded(encoder, head, windows)
    words = Words(phrases, torch.zeros(5, dtype=torch.bool), unit_rows(2, seed=1))
    label = label_patches(phrases @ kept.features.mT, windows, kept.grid, 0.3)
    guide = oracles_hosts.label_attention(label[0].tolist(), kept.grid)
    features = oracles_hosts.resclip_guided(
        slow_tower(tower), windows[0].double().numpy(), base, (2, 3), (0.4, 1.5), (guide, 0.6, 2.1)
    )
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    tables = head.scores(encoder, kept, words)
    np.testing.assert_allclose(tables.phrases[0].numpy(), phrases.numpy() @ unit.T, atol=5e-4)
    np.testing.assert_allclose(tables.others[0].numpy(), words.others.numpy() @ unit.T, atol=5e-4)


def test_pixels_that_no_phrase_is_sure_of_feed_the_first_one_back() -> None:
    encoder, head = (
        ImageEncoder(tiny_tower()),
        ResClipHead(HeadOptions(settings=ResClipConfig(feedback=True))),
    )
    windows = random_windows(2, 32, 40)
    first = unit_rows(5) @ encoded(encoder, head, windows).features.mT
    assert not label_patches(first, windows, (4, 5), threshold=1.0).any()
    assert len(label_patches(first, windows, (4, 5), threshold=0.0).unique()) > 1


@pytest.mark.parametrize("size", SIZES)
def test_feature_surgery_equals_its_definition(size: tuple[int, int]) -> None:
    tower, windows, phrases = tiny_tower(), random_windows(1, *size), unit_rows(5)
    encoder = ImageEncoder(tower)
    head = ClipSurgeryHead(HeadOptions(settings=ClipSurgeryConfig(feature_surgery=True)))
    none = torch.zeros(5, dtype=torch.bool)
    kept = encoded(encoder, head, windows)
    found = head.scores(encoder, kept, Words(phrases[:4], none[:4], phrases[4:]))
    slow = slow_tower(tower)
    states, _ = slow.hidden(windows[0].double().numpy())
    token = slow.project(states[-1][:1])[0]
    speaks = np.exp(2 * phrases.double().numpy() @ token / np.linalg.norm(token))
    cosines = phrases.double().numpy() @ kept.features[0].double().numpy().T
    weights = [*(4 * speaks[:4] / speaks[:4].sum()), 5 * speaks[4] / speaks.sum()]
    expected = np.array(weights)[:, None] * cosines
    np.testing.assert_allclose(torch.cat([found.phrases, found.others], 1)[0].numpy(), expected, atol=2e-4)


def test_without_their_settings_these_are_plain_heads() -> None:
    for head in (kind(HeadOptions()) for kind in (CliptraseHead, ClipSurgeryHead, ResClipHead)):
        assert as_scorer(head) is None
    assert CliptraseHead(HeadOptions()).request(4) == TraceRequest()


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
