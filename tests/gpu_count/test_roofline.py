from unittest.mock import patch

import pytest
import torch
from torch import nn

from ovss_core.kernels.attention import attend_with_mean
from ovss_core.kernels.norms import add_norm
from tests.gpu_count.pretended import GPU
from tests.gpu_count.roofline import BLOCKS, MEMORY, PLAIN, PRODUCTS, START, Floor, main, price, pricing

pytest.importorskip("triton")
ROWS, WIDTH = 1 << 16, 768


@pytest.fixture(scope="module")
def floor() -> Floor:
    return price("ViT-B-16-quickgelu", 256)


def test_all_that_labelling_asks_of_the_encoder_is_within_80_microseconds_a_window(floor: Floor) -> None:
    assert floor.whole <= 80.0  # 79.7
    assert floor.microseconds(BLOCKS) < floor.microseconds(PLAIN) < 78.0


def test_a_product_with_its_activation_saves_a_pass_over_its_result(floor: Floor) -> None:
    fused = price("ViT-B-16-quickgelu", 256, fused=True)
    names = [step.name for step in fused.steps[BLOCKS]]
    assert names.count("quick_gelu_product") == 12
    assert "silu" not in names
    products = (sum(step.products for step in each.steps[BLOCKS]) for each in (floor, fused))
    assert len(set(products)) == 1
    passes = 2 * 2 * 197 * 3072 / MEMORY * 1e6
    assert floor.whole - fused.whole == pytest.approx(11 * passes, rel=1e-6)


def test_blocks_ask_for_the_products_that_their_shapes_say(floor: Floor) -> None:
    products = sum(step.products for step in floor.steps[PLAIN]) / floor.windows
    tokens, weights = 197, 12 * 768 * 768
    assert products == 12 * (2 * tokens * weights + 4 * tokens**2 * 768)


def test_a_pass_more_over_memory_is_in_the_figure(floor: Floor) -> None:
    with patch("ovss_core.kernels.norms.use_kernel", lambda tensor: False):
        slower = price("ViT-B-16-quickgelu", 256)
    assert slower.whole > floor.whole + 2


@torch.inference_mode()
def test_an_operation_costs_its_bytes_its_products_or_its_start() -> None:
    with pricing() as gpu:
        table = torch.empty(ROWS, WIDTH, device=GPU, dtype=torch.bfloat16)
        weight, few = table[:WIDTH], torch.empty(4, device=GPU)
        gpu.priced.clear()
        twice, view, product, little = table + table, table.T, table @ weight.T, few + few[:1].expand(4)
    added, multiplied, small = gpu.priced
    assert (twice.shape, view.shape, product.shape, little.shape) == (
        (ROWS, WIDTH),
        (WIDTH, ROWS),
        (ROWS, WIDTH),
        (4,),
    )
    assert (added.bytes, added.products) == (2 * 2 * ROWS * WIDTH, 0)
    assert added.seconds == added.bytes / MEMORY
    assert multiplied.bytes == 2 * (2 * ROWS * WIDTH + WIDTH**2)
    assert multiplied.products == 2 * ROWS * WIDTH**2
    assert multiplied.seconds == multiplied.products / PRODUCTS[torch.bfloat16]
    assert (small.bytes, small.seconds) == (4 * (4 + 1 + 4), START)


@torch.inference_mode()
@pytest.mark.parametrize(("adds", "totals", "passes"), [(True, True, 6), (True, False, 4), (False, False, 2)])
def test_a_kernel_costs_the_tensors_that_it_is_launched_with(adds: bool, totals: bool, passes: int) -> None:
    with pricing() as gpu:
        norm = nn.LayerNorm(WIDTH).to(GPU, torch.bfloat16)
        tokens, added, total = torch.empty(3, 64, 197, WIDTH, device=GPU, dtype=torch.bfloat16)
        gpu.priced.clear()
        add_norm(tokens, added if adds else None, norm, total if totals else None)
    [step] = gpu.priced
    assert step.name == "add_norm"
    assert step.bytes == 2 * (passes * 64 * 197 * WIDTH + 2 * WIDTH)


@torch.inference_mode()
def test_the_mean_of_heads_is_read_and_written_and_its_tiles_are_multiplied_whole() -> None:
    windows, tokens = 8, 197
    with pricing() as gpu:
        packed = torch.empty(windows, tokens, 3, 12, 64, device=GPU, dtype=torch.bfloat16)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        total = torch.empty(windows, tokens - 1, tokens - 1, device=GPU)
        gpu.priced.clear()
        attend_with_mean(query, key, value, 0.125, total, whole=False)
    attention, mean = gpu.priced
    vectors, sums = 2 * windows * tokens * 768, 4 * windows * 12 * tokens
    assert attention.bytes == 4 * vectors
    assert mean.bytes == 2 * vectors + sums + 2 * 4 * windows * (tokens - 1) ** 2
    assert mean.products == windows * 12 * 2 * 256 * 256 * 64


def test_the_command_prints_each_part_and_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "ViT-B-32-quickgelu", "--windows", "8"]) == 0
    printed = capsys.readouterr().out
    assert "| SFP head | all |" in printed
    assert "microseconds a window" in printed.splitlines()[-1]
