"""The product with QuickGELU in Triton's interpreter against torch's own, and the choice between forms."""

import pytest
import torch
from torch import Tensor

from ovss_core.kernels import products
from ovss_core.kernels.products import TILES, Tile, choose_tile

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU `make test-gpu` runs the kernels on it"
)
SMALL = Tile(16, 32, 16, 4, 1)


def _tables(rows: int, width: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(rows)
    tokens = torch.randn(rows, width + 3, generator=chance)[:, :width]  # a part of larger rows
    return tokens, torch.randn(hidden, width, generator=chance), torch.randn(hidden, generator=chance)


@pytest.mark.parametrize(("rows", "width", "hidden"), [(16, 16, 32), (33, 48, 70), (300, 24, 96), (5, 7, 3)])
def test_the_product_equals_torchs(rows: int, width: int, hidden: int) -> None:
    from ovss_core.kernels.products_triton import launch_quick_gelu_product

    tokens, weight, bias = _tables(rows, width, hidden)
    linear = tokens.double() @ weight.double().T + bias
    found = launch_quick_gelu_product(tokens, weight, bias, SMALL)
    assert found.shape == (rows, hidden)
    assert torch.allclose(found.double(), linear * torch.sigmoid(1.702 * linear), atol=1e-4)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_very_negative_sums_give_nothing_and_large_ones_themselves() -> None:
    from ovss_core.kernels.products_triton import launch_quick_gelu_product

    tokens, weight = torch.eye(16), torch.full((32, 16), -1e4)
    bias = torch.cat([torch.zeros(16), torch.full((16,), 3e4)])
    found = launch_quick_gelu_product(tokens, weight, bias, SMALL)
    assert torch.equal(found[:, :16], torch.zeros(16, 16))
    assert torch.allclose(found[:, 16:], torch.full((16, 16), 2e4))


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> dict[object, Tile | None]:
    choices: dict[object, Tile | None] = {}
    monkeypatch.setattr(products, "_chosen", choices)
    return choices


@pytest.mark.parametrize(
    ("times", "best"),
    [([1.0, 0.9, 0.8, 1.1, 0.85], 1), ([1.0, 0.99, 1.2, 1.2, 0.985], None), ([1.0, 0.5, 0.6, 0.7, 0.6], 0)],
)
def test_the_fastest_form_is_kept_and_the_plain_one_where_little_is_won(
    times: list[float], best: int | None, chosen: dict[object, Tile | None]
) -> None:
    weight, given = torch.ones(4, 4, dtype=torch.bfloat16), iter(times)
    choose_tile(weight, lambda: torch.ones(3), lambda run: next(given))
    assert list(chosen.values()) == [None if best is None else TILES[best]]
    choose_tile(weight, lambda: torch.ones(3), lambda run: next(given))  # no time is asked for again


def test_a_form_that_fails_or_gives_other_numbers_is_not_kept(chosen: dict[object, Tile | None]) -> None:
    weight = torch.ones(4, 4, dtype=torch.bfloat16)

    def run() -> Tensor:
        [tile] = chosen.values()
        if tile == TILES[0]:
            raise RuntimeError("out of resources: shared memory")
        return torch.full((3,), torch.nan if tile == TILES[1] else 1.1 if tile == TILES[2] else 1.0)

    choose_tile(weight, run, lambda run: 1.0 if list(chosen.values()) == [None] else 0.5)
    assert list(chosen.values()) == [TILES[3]]


def test_float32_is_left_to_the_vendors_product(chosen: dict[object, Tile | None]) -> None:
    choose_tile(torch.ones(4, 4), lambda: torch.ones(3), lambda run: 0.0)
    assert not chosen
