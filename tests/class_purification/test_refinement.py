import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovss_core.class_purification.class_maps import ClassMaps
from ovss_core.class_purification.placement import Units
from ovss_core.class_purification.refinement import balance, normalize_range, spread
from tests.oracles_freecp import transfer_matrix


def random_attention(windows: int, patches: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(windows, patches, patches, generator=generator)).softmax(-1)


def dense(attention: torch.Tensor) -> torch.Tensor:
    patches = attention.shape[1]
    identity = torch.eye(patches, dtype=attention.dtype).expand(len(attention), -1, -1)
    return spread(balance(attention), identity)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000), st.booleans())
def test_two_vectors_normalize_as_the_dense_matrix_does(patches: int, seed: int, holes: bool) -> None:
    attention = random_attention(1, patches, seed).double()
    if holes:
        attention[0, :, seed % patches] = 0
        attention[0, seed % 3 % patches] = 0
    expected = transfer_matrix(attention[0].numpy())
    np.testing.assert_allclose(dense(attention)[0].numpy(), expected, atol=1e-12)


def test_rows_sum_to_one_after_the_last_round() -> None:
    affinity = balance(random_attention(3, 20))
    scaled = affinity.row_scale[:, :, None] * affinity.attention * affinity.column_scale[:, None]
    torch.testing.assert_close(scaled.sum(2), torch.ones(3, 20))


def test_attention_of_each_patch_to_itself_leaves_maps_alone() -> None:
    maps = torch.rand(2, 5, 9, generator=torch.Generator().manual_seed(0))
    identity = 0.3 * torch.eye(9).expand(2, 9, 9)
    torch.testing.assert_close(spread(balance(identity), maps), maps)


def test_a_patch_that_nobody_attends_to_gives_no_nan() -> None:
    attention = random_attention(1, 8)
    attention[:, :, 3] = 0
    spread_maps = dense(attention)
    assert spread_maps.isfinite().all()
    assert spread_maps.sum() > 0


def test_attention_without_any_weight_spreads_nothing() -> None:
    assert not dense(torch.zeros(1, 6, 6)).any()


def test_windows_do_not_see_each_other() -> None:
    attention = random_attention(4, 10)
    together = dense(attention)
    for window in range(4):
        torch.testing.assert_close(together[window], dense(attention[window : window + 1])[0])


def one_map(values: torch.Tensor) -> ClassMaps:
    return ClassMaps(Units.of((1,)), torch.tensor([[0]]), values[None])


def test_a_map_that_is_constant_but_for_rounding_becomes_one_throughout() -> None:
    rounding = torch.tensor([[0.2, 0.2 + 6e-8, 0.2 - 6e-8, 0.2]])
    assert torch.equal(normalize_range(one_map(rounding)).maps, torch.ones(1, 1, 4))
    uneven = torch.tensor([[0.2, 0.2002, 0.2, 0.2]])
    assert normalize_range(one_map(uneven)).maps.min().item() == 0


def test_an_empty_map_stays_empty() -> None:
    assert not normalize_range(one_map(torch.zeros(1, 4))).maps.any()


def test_a_class_is_stretched_over_all_windows_of_its_unit_together() -> None:
    maps = torch.tensor([[[0.0, 1.0]], [[2.0, 4.0]], [[1.0, 3.0]]])
    found = normalize_range(ClassMaps(Units.of((2, 1)), torch.tensor([[0], [0]]), maps)).maps
    torch.testing.assert_close(found, torch.tensor([[[0, 0.25]], [[0.5, 1.0]], [[0.0, 1.0]]]))


def test_half_precision_attention_is_balanced_in_float32() -> None:
    affinity = balance(random_attention(1, 5).to(torch.bfloat16))
    assert affinity.attention.dtype == affinity.row_scale.dtype == torch.float32
