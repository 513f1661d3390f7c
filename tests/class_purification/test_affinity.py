import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovss_core.class_purification.affinity import balance, spread, spread_rows
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
def test_two_vectors_normalise_as_the_dense_matrix_does(patches: int, seed: int, holes: bool) -> None:
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


def test_maps_in_any_order_are_spread_in_their_own_window() -> None:
    affinity = balance(random_attention(3, 7))
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(11, 7, generator=generator)
    window = torch.randint(0, 3, (11,), generator=generator)
    found = spread_rows(affinity, maps, window)
    for row in range(11):
        alone = spread(affinity, maps[row].expand(3, 1, 7))[window[row], 0]
        torch.testing.assert_close(found[row], alone)


def test_half_precision_attention_is_balanced_in_float32() -> None:
    affinity = balance(random_attention(1, 5).to(torch.bfloat16))
    assert affinity.attention.dtype == affinity.row_scale.dtype == torch.float32
