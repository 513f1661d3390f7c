"""A matrix product with QuickGELU behind it, in one kernel where that was found to be the faster form.

A kernel of one's own may lose more in the product than it saves by the pass over the result, which depends on the card and
the versions. So nothing is taken on trust: `choose_tile` times the forms on the card in question, and without it the vendor's
product and a pass of its own are used.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ovss_core.kernels import use_kernel


@dataclass(frozen=True)
class Tile:
    """How a matrix product is cut into programs.

    Attributes:
        rows, columns: Of the result, for one program.
        depth: Channels that are multiplied at once.
        warps: Of a program.
        stages: Steps of `depth` that are fetched ahead.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


TILES = Tile(128, 256, 64, 8, 3), Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 3), Tile(256, 128, 64, 8, 3)
"""What is tried: shapes that keep a Hopper card's matrix units busy, one or two programs a processor."""
FEWEST_PROGRAMS = 256
"""Below, a large card's processors would wait for each other; the vendor's product then takes other shapes."""
GAIN, APART = 0.98, 0.02
"""A kernel must take less than this share of the time, and may differ by so much of the result, root mean square."""
_LOG = logging.getLogger(__name__)
_chosen: dict[object, Tile | None] = {}


def quick_gelu_product(
    tokens: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "hidden width"],
    bias: Float[Tensor, " hidden"],
) -> Float[Tensor, "tokens hidden"] | None:
    """Return x sigmoid(1.702 x) of x = tokens weight^T + bias; None where no kernel was chosen for such weights."""
    tile = _chosen.get(_kind(weight))
    if tile is None or not use_kernel(tokens) or (torch.is_grad_enabled() and tokens.requires_grad):
        return None
    if -(-len(tokens) // tile.rows) * -(-len(weight) // tile.columns) < FEWEST_PROGRAMS:
        return None
    from ovss_core.kernels.products_triton import launch_quick_gelu_product

    return launch_quick_gelu_product(tokens, weight, bias, tile)


@contextmanager
def tiled(weight: Tensor, tile: Tile) -> Iterator[None]:
    """Let products with such weights be cut in this way until the end of the block."""
    kind = _kind(weight)
    before = _chosen.get(kind)
    _chosen[kind] = tile
    try:
        yield
    finally:
        _chosen[kind] = before


def choose_tile(
    weight: Tensor, run: Callable[[], Tensor], time: Callable[[Callable[[], Tensor]], float]
) -> None:
    """Time what uses `quick_gelu_product` in each form, and keep the fastest that gives the plain form's numbers.

    A choice holds for all weights of this size and number format on this device, in this process.

    Args:
        weight: In half precision; others are left to the vendor's product.
        run: Does what is timed.
        time: Returns how long a function takes.
    """
    kind = _kind(weight)
    if kind in _chosen or weight.dtype not in (torch.float16, torch.bfloat16):
        return
    _chosen[kind] = None
    expected = run().float()
    best, plain = None, time(run)
    least = plain * GAIN
    for tile in TILES:
        try:
            with tiled(weight, tile):
                found = run().float()
                if not (found - expected).square().mean().sqrt() <= APART * expected.square().mean().sqrt():
                    _LOG.info("%s gives other numbers than the plain product", tile)
                    continue
                taken = time(run)
        except Exception as error:  # whatever a compiler, a driver or a launch may raise
            _LOG.info("%s cannot be used: %s", tile, error)
            continue
        if taken < least:
            best, least = tile, taken
    _chosen[kind] = best
    _LOG.info(
        "QuickGELU in the product: %s, %.0f %% of the plain form's time",
        best,
        100 * least / plain if best else 100,
    )


def _kind(weight: Tensor) -> object:
    return weight.device, weight.dtype, weight.shape
