from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.config import OutlierRule, SfpConfig, SfpVariant
from ovss_core.dense_heads import HeadOptions, build_head
from tests import oracles
from tests.tiny import random_windows, slow_tower, tiny_encoder, tiny_tower

MODULES = list(product([True, False], [True, False], [True, False]))
RULES: list[OutlierRule] = ["attention", "norm", "local_outlier_factor"]


def _config(
    variant: SfpVariant,
    modules: tuple[bool, bool, bool],
    outlier_rule: OutlierRule = "attention",
    outlier_factor: float | None = None,
) -> SfpConfig:
    return SfpConfig(
        variant,
        outlier_mitigation=modules[0],
        attention_enhancement=modules[1],
        attention_integration=modules[2],
        outlier_rule=outlier_rule,
        outlier_factor=outlier_factor,
    )


def _features(encoder: ImageEncoder, windows: Tensor, config: SfpConfig, host: str = "sfp") -> Tensor:
    head = build_head(host, HeadOptions(settings=config))
    return head.features(encoder, encoder.trace(windows, head.request(encoder.depth)))


@pytest.mark.parametrize(("mitigation", "enhancement", "integration"), MODULES)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_the_paper_variant_equals_its_equations_with_any_modules(
    mitigation: bool, enhancement: bool, integration: bool, size: tuple[int, int]
) -> None:
    tower, windows = tiny_tower(), random_windows(1, *size)
    config = SfpConfig(
        variant="paper",
        outlier_mitigation=mitigation,
        attention_enhancement=enhancement,
        attention_integration=integration,
        outlier_factor=1.5,
    )
    expected = oracles.paper_sfp(
        slow_tower(tower),
        windows[0].double().numpy(),
        mitigation=mitigation,
        enhancement=enhancement,
        integration=integration,
        factor=1.5,
    )
    features = _features(ImageEncoder(tower), windows, config)
    np.testing.assert_allclose(features[0].numpy(), expected, atol=5e-4)


@pytest.mark.parametrize("start", [1, 2, 3])
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_layer_sum_may_start_later_and_be_balanced_more_often(start: int, rounds: int) -> None:
    tower, windows = tiny_tower(), random_windows(1, 32, 24)
    config = SfpConfig(variant="paper", integration_start=start, integration_rounds=rounds)
    expected = oracles.paper_sfp(slow_tower(tower), windows[0].double().numpy(), start=start, rounds=rounds)
    features = _features(ImageEncoder(tower), windows, config)
    np.testing.assert_allclose(features[0].numpy(), expected, atol=5e-4)


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_paper_variant_keeps_to_the_limit_of_outliers(limit: int) -> None:
    tower, windows = tiny_tower(), random_windows(1, 32, 32)
    config = SfpConfig(variant="paper", outlier_factor=3.0, max_outliers=limit)
    expected = oracles.paper_sfp(slow_tower(tower), windows[0].double().numpy(), factor=3.0, limit=limit)
    features = _features(ImageEncoder(tower), windows, config)
    np.testing.assert_allclose(features[0].numpy(), expected, atol=5e-4)


def test_the_released_variant_with_a_limit_of_zero_repairs_nothing() -> None:
    encoder, windows = tiny_encoder(), random_windows(2, 32, 32)
    none = _features(encoder, windows, SfpConfig(outlier_factor=3.0, max_outliers=0))
    off = _features(encoder, windows, SfpConfig(outlier_mitigation=False))
    assert torch.allclose(none, off, atol=1e-5)
    ten = _features(encoder, windows, SfpConfig(outlier_factor=3.0))
    assert not torch.allclose(none, ten, atol=1e-3)


def test_the_sum_over_layers_adds_up_from_its_parts() -> None:
    encoder, windows = tiny_encoder(depth=5), random_windows(2, 32, 32)
    sums = []
    for start in range(1, 5):
        head = build_head("sfp", HeadOptions(settings=SfpConfig(variant="paper", integration_start=start)))
        attention = encoder.trace(windows, head.request(5)).observed.filtered_attention
        assert attention is not None
        sums.append(attention)
    terms = [first - second for first, second in pairwise(sums)]
    assert all((term >= -1e-6).all() for term in terms)
    assert torch.allclose(torch.stack(terms).sum(0) + sums[-1], sums[0], atol=1e-5)
    assert not torch.allclose(sums[0], sums[1], atol=1e-2)


def test_a_start_beyond_the_last_block_takes_the_last_one() -> None:
    encoder, windows = tiny_encoder(), random_windows(1, 32, 32)
    late = _features(encoder, windows, SfpConfig(variant="paper", integration_start=99))
    last = _features(encoder, windows, SfpConfig(variant="paper", integration_start=3))
    assert torch.equal(late, last)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_with_all_modules_off_it_is_clearclip(variant: SfpVariant) -> None:
    encoder, windows = tiny_encoder(), random_windows(3, 32, 40)
    off = SfpConfig(
        variant, outlier_mitigation=False, attention_enhancement=False, attention_integration=False
    )
    expected = _features(encoder, windows, off, "clearclip")
    assert torch.allclose(_features(encoder, windows, off), expected, atol=1e-4)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_each_module_alone_changes_the_features(variant: SfpVariant) -> None:
    encoder, windows = tiny_encoder(), random_windows(2, 32, 32)
    seen = [_features(encoder, windows, _config(variant, modules, outlier_factor=3.0)) for modules in MODULES]
    for index, first in enumerate(seen):
        assert all((first - second).abs().max() > 1e-3 for second in seen[index + 1 :])


def _adversarial() -> dict[str, Tensor]:
    return {
        "constant": torch.full((2, 3, 32, 40), 0.7),
        "black": torch.zeros(2, 3, 32, 32),
        "one patch": random_windows(2, 8, 8),
        "one row": random_windows(2, 8, 64),
        "checkerboard": (torch.arange(32)[:, None] + torch.arange(32))
        .remainder(2)
        .expand(1, 3, 32, 32)
        .float(),
        "loud": 100 * random_windows(1, 32, 32),
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("modules", MODULES)
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_no_window_gives_nan_even_where_every_patch_is_an_outlier(
    variant: SfpVariant, modules: tuple[bool, bool, bool], rule: OutlierRule
) -> None:
    encoder = tiny_encoder()
    for factor in (None, 1e9):
        config = _config(variant, modules, outlier_rule=rule, outlier_factor=factor)
        for name, windows in _adversarial().items():
            assert _features(encoder, windows, config).isfinite().all(), name


def test_every_patch_an_outlier_in_every_layer_leaves_no_attention_and_no_nan() -> None:
    encoder, windows = tiny_encoder(), random_windows(2, 32, 32)
    for after in (False, True):
        config = SfpConfig(variant="paper", outlier_factor=1e9, integrate_after_projection=after)
        assert _features(encoder, windows, config).isfinite().all()


def test_integration_after_the_projection_averages_the_projected_features() -> None:
    tower, windows = tiny_tower(), random_windows(1, 32, 32)
    slow = slow_tower(tower)
    config = SfpConfig(variant="paper", integrate_after_projection=True)
    plain = oracles.paper_sfp(slow, windows[0].double().numpy(), integration=False)
    head = build_head("sfp", HeadOptions(settings=config))
    attention = ImageEncoder(tower).trace(windows, head.request(4)).observed.filtered_attention
    assert attention is not None
    expected = oracles.balanced(attention[0].double().numpy(), 1) @ plain
    features = _features(ImageEncoder(tower), windows, config)
    np.testing.assert_allclose(features[0].numpy(), expected, atol=5e-4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_a_batch_equals_its_windows_one_by_one(variant: SfpVariant, rule: OutlierRule) -> None:
    encoder, windows = tiny_encoder(), random_windows(4, 24, 40)
    config = SfpConfig(variant, outlier_rule=rule)
    singles = torch.cat([_features(encoder, window[None], config) for window in windows])
    assert torch.allclose(_features(encoder, windows, config), singles, atol=2e-4)


@pytest.mark.parametrize("rule", ["attention", "local_outlier_factor"])
def test_repaired_outliers_change_the_features(rule: OutlierRule) -> None:
    encoder, windows = tiny_encoder(), random_windows(3, 48, 48)
    config = SfpConfig(outlier_rule=rule, outlier_factor=3.0)
    off = _features(encoder, windows, SfpConfig(outlier_mitigation=False))
    assert not torch.allclose(_features(encoder, windows, config), off, atol=1e-3)
