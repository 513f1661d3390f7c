import numpy as np
import torch

from ovss_core.feature_purification.similarity import (
    aggregate,
    cut_similarity,
    patch_similarity,
    similarity_attention,
)
from tests import oracles


def _patches() -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(2, 10, 5, generator=generator) + 2 * torch.randn(2, 1, 5, generator=generator)


def test_similarity_is_the_cosine_of_every_pair() -> None:
    for window, similarity in zip(_patches(), patch_similarity(_patches()), strict=True):
        np.testing.assert_allclose(similarity.numpy(), oracles.cosine_map(window.double().numpy()), atol=1e-6)


def test_the_cut_is_inclusive() -> None:
    values = torch.tensor([[[0.39, 0.5], [0.4, -1.0]]], dtype=torch.float64)
    assert cut_similarity(values).tolist() == [[[0.0, 0.5], [0.4, 0.0]]]


def test_aggregation_equals_the_loop_written_weighted_mean() -> None:
    similarity = cut_similarity(patch_similarity(_patches()))
    averaged = aggregate(similarity, _patches())
    for window in range(2):
        expected = oracles.smooth(similarity[window].double().numpy(), _patches()[window].double().numpy())
        np.testing.assert_allclose(averaged[window].numpy(), expected, atol=1e-5)


def test_similarity_attention_equals_the_loop_written_softmax() -> None:
    for similarity in (patch_similarity(_patches()), cut_similarity(patch_similarity(_patches()))):
        attention = similarity_attention(similarity.double())
        for window in range(2):
            expected = oracles.similarity_attention(similarity[window].double().numpy())
            np.testing.assert_allclose(attention[window].numpy(), expected, atol=1e-12)


def test_attention_rows_sum_to_one_even_where_all_patches_are_equal() -> None:
    for patches in (torch.ones(1, 7, 3), torch.zeros(1, 7, 3), torch.eye(7)[None], -torch.ones(1, 1, 3)):
        attention = similarity_attention(cut_similarity(patch_similarity(patches)))
        assert torch.allclose(attention.sum(-1), torch.ones(1, patches.shape[1]), atol=1e-6)


def test_the_similarity_given_is_not_changed() -> None:
    similarity = patch_similarity(_patches())
    before = similarity.clone()
    similarity_attention(similarity)
    cut_similarity(similarity)
    assert torch.equal(similarity, before)


def test_low_precision_patches_are_compared_in_float32_and_keep_their_format() -> None:
    low = _patches().bfloat16()
    assert patch_similarity(low).dtype == torch.float32
    assert aggregate(patch_similarity(low), low).dtype == torch.bfloat16
