from itertools import product

import numpy as np
import pytest
import torch

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.config import SfpConfig
from ovss_core.feature_purification.attention_enhancement import enhance_attention
from ovss_core.kernels.attention import attend_by_terms
from tests import oracles
from tests.tiny import slow_tower, tiny_tower

TOWER = tiny_tower()
BLOCK = TransformerBlock(TOWER.transformer.resblocks[-1])
PATCHES = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("project", "residual", "strength"), list(product([True, False], [True, False], [0.5, 1.7]))
)
def test_every_setting_equals_the_dense_softmax(project: bool, residual: bool, strength: float) -> None:
    config = SfpConfig(
        enhancement_lambda=strength, enhancement_projection=project, enhancement_residual=residual
    )
    enhanced = enhance_attention(BLOCK, PATCHES, config)
    for window in range(2):
        patches = PATCHES[window].double().numpy()
        expected = oracles.enhance(slow_tower(TOWER), patches, strength, project=project, residual=residual)
        np.testing.assert_allclose(enhanced[window].numpy(), expected, atol=1e-4)


def test_lambda_zero_averages_all_patches_evenly() -> None:
    config = SfpConfig(enhancement_lambda=0.0, enhancement_projection=False, enhancement_residual=False)
    enhanced = enhance_attention(BLOCK, PATCHES, config)
    assert torch.allclose(enhanced, PATCHES.mean(1, keepdim=True).expand_as(PATCHES), atol=1e-5)


def test_attention_rows_sum_to_one_so_constant_values_stay_constant() -> None:
    query = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(2, 3, 7, 4)
    shared = torch.rand(2, 7, 7).softmax(-1)
    assert torch.allclose(attend_by_terms((query, 2 * query), 0.5, shared, ones), ones, atol=1e-5)
    assert torch.allclose(attend_by_terms((query,), 0.5, shared, ones, 2 * ones), 3 * ones, atol=1e-5)


def test_the_mixture_is_the_mean_of_the_dense_maps() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second, value = (torch.randn(2, 3, 7, 4, generator=generator) for _ in range(3))
    shared = torch.rand(2, 7, 7, generator=generator).softmax(-1)
    dense = (0.5 * first @ first.mT).softmax(-1) + (0.5 * second @ second.mT).softmax(-1) + shared[:, None]
    assert torch.allclose(attend_by_terms((first, second), 0.5, shared, value), dense / 3 @ value, atol=1e-5)


def test_permuting_patches_permutes_the_enhanced_ones() -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    permuted = enhance_attention(BLOCK, PATCHES[:, order], SfpConfig())
    assert torch.allclose(permuted, enhance_attention(BLOCK, PATCHES, SfpConfig())[:, order], atol=1e-4)


def test_a_single_patch_attends_to_itself() -> None:
    alone = PATCHES[:, :1]
    config = SfpConfig(enhancement_projection=False, enhancement_residual=False)
    assert torch.allclose(enhance_attention(BLOCK, alone, config), alone, atol=1e-6)
