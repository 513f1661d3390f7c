import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovss_core.class_purification import evidence
from ovss_core.class_purification.evidence import (
    PhraseScores,
    SoftmaxStatistics,
    class_maximum,
    plan_chunks,
    softmax_statistics,
)
from ovss_core.class_purification.placement import Units
from tests.class_purification.scenes import unit


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(1, 12))
def test_chunks_hold_every_phrase_once_and_never_split_a_class(phrase_class: list[int], size: int) -> None:
    chunks = plan_chunks(phrase_class, size)
    assert sorted(index for chunk in chunks for index in chunk.phrases.tolist()) == list(
        range(len(phrase_class))
    )
    classes = [index for chunk in chunks for index in chunk.classes.tolist()]
    assert sorted(classes) == sorted(set(phrase_class))
    for chunk in chunks:
        assert len(chunk.phrases) <= size or len(chunk.classes) == 1
        assert {phrase_class[index] for index in chunk.phrases.tolist()} == set(chunk.classes.tolist())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 1000))
def test_a_class_speaks_with_its_loudest_phrase(phrase_class: list[int], seed: int) -> None:
    (chunk,) = plan_chunks(phrase_class, 100)
    scores = torch.randn(len(phrase_class), 2, 3, generator=torch.Generator().manual_seed(seed))
    found = class_maximum(scores[chunk.phrases], chunk)
    for column, index in enumerate(chunk.classes.tolist()):
        members = np.flatnonzero(np.array(phrase_class) == index)
        torch.testing.assert_close(found[column], scores[members].amax(0))


@pytest.mark.parametrize("size", [1, 3, 7, 30])
def test_statistics_are_those_of_the_whole_softmax(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = unit(torch.randn(3, 8, 16, generator=generator))
    embeddings = unit(torch.randn(30, 16, generator=generator))
    units = Units.of((2, 1))
    found = softmax_statistics(
        PhraseScores(features, embeddings, 100.0, plan_chunks(np.arange(30) // 2, size)), units
    )
    probability = (100 * features.double() @ embeddings.double().T).softmax(-1)
    for index, windows in enumerate((slice(0, 2), slice(2, 3))):
        assert found.low[index].item() == pytest.approx(probability[windows].min().item(), rel=1e-4)
        assert found.high[index].item() == pytest.approx(probability[windows].max().item(), rel=1e-4)
    total = (100 * features.double() @ embeddings.double().T).logsumexp(-1)
    torch.testing.assert_close(found.log_total.double(), total, atol=2e-5, rtol=0)


def test_the_chunk_size_does_not_show_in_the_statistics() -> None:
    generator = torch.Generator().manual_seed(0)
    features = unit(torch.randn(2, 8, 16, generator=generator))
    embeddings = unit(torch.randn(300, 16, generator=generator))
    units = Units.of((1, 1))

    def statistics(size: int) -> SoftmaxStatistics:
        return softmax_statistics(
            PhraseScores(features, embeddings, 100.0, plan_chunks(np.arange(300), size)), units
        )

    torch.testing.assert_close(statistics(7).log_total, statistics(300).log_total, atol=4e-6, rtol=0)


def test_a_unit_without_contrast_normalizes_to_one() -> None:
    flat = SoftmaxStatistics(torch.zeros(1, 1), torch.tensor([1.0]), torch.tensor([1.0]))
    assert flat.normalize(torch.tensor([1.0]), torch.tensor([0])).tolist() == [1.0]


@pytest.mark.parametrize("budget", [0, 10**6])
def test_a_second_pass_sees_the_same_scores_whether_they_were_kept_or_not(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "KEPT_SCORES", budget)
    generator = torch.Generator().manual_seed(0)
    features, embeddings = (unit(torch.randn(*size, 16, generator=generator)) for size in ((3, 8), (30,)))
    scores = PhraseScores(features, embeddings, 100.0, plan_chunks(np.arange(30), 7))
    first, second = ([values for _, values in scores] for _ in range(2))
    for before, after in zip(first, second, strict=True):
        assert torch.equal(before, after)
        assert (before is after) == (budget > 0)
    alone = PhraseScores(features, embeddings, 100.0, plan_chunks(np.arange(30), 30))
    [(_, once)], [(_, again)] = alone, alone
    assert once is again
