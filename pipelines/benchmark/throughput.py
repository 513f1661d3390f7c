"""Rates that compare across machines: windows a second, and the share of what matrix products reach here."""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ovss_core.engine.waves import Wave
from ovss_core.results import Segmentation
from pipelines.benchmark.engine_times import ENGINE, FLOOR, Row, gather_all
from pipelines.benchmark.timing import take_turns
from pipelines.benchmark.workload import Workload

SIDE = {"cpu": 2048, "cuda": 8192}


def throughput(workload: Workload, stages: Sequence[Row]) -> dict[str, float]:
    """Turn the stage times into rates.

    Returns:
        Windows of the run, and per image the classes that are kept and the ambiguity crops of the synthetic
        vocabulary; windows a second of the floor and of the engine with SFP and FreeCP; images a second; 10^9
        operations of a window in the plain encoder; 10^12 operations a second of the floor and of a large matrix
        product in the same number format, and the floor's share of the latter.
    """
    seconds = {row.name: row.seconds for row in stages}
    engine = workload.engine("sfp", "freecp", 150)
    waves = gather_all(engine, workload.pictures)
    windows = sum(len(wave.pixels) for wave in waves)
    operations = sum(_operations(workload, wave) for wave in waves)
    reached, possible = operations / seconds[FLOOR], _matrix_rate(workload)
    found = engine.segment(workload.pictures)
    return {
        "windows": windows,
        "kept_classes_an_image": statistics.mean(len(image.kept) for image in found),
        "ambiguity_crops_an_image": statistics.mean(map(_crops, found)),
        "floor_windows_a_second": windows / seconds[FLOOR],
        "engine_windows_a_second": windows / seconds[ENGINE],
        "engine_images_a_second": len(workload.pictures) / seconds[ENGINE],
        "window_gigaflop": operations / windows / 1e9,
        "floor_teraflops": reached / 1e12,
        "matrix_product_teraflops": possible / 1e12,
        "floor_share_of_matrix_product": reached / possible,
    }


def window_operations(visual: Any, grid: tuple[int, int]) -> int:
    """Count the floating-point operations of one window in open_clip's `encode_image`, from shapes.

    Matrix products and nothing else. A counter that listens to torch's operations misses the attention, which
    `torch.nn.MultiheadAttention` computes in one fused operation of its own where no gradient is needed.

    Args:
        visual: A plain `open_clip.transformer.VisionTransformer`.
        grid: Patch rows and columns of the window.
    """
    patches, width = grid[0] * grid[1], visual.conv1.out_channels
    tokens = patches + 1
    products = patches * visual.conv1.weight[0].numel() * width
    for block in visual.transformer.resblocks:
        products += tokens * width * 3 * width  # queries, keys and values
        products += 2 * tokens * tokens * width  # scores, and the values they weigh
        products += tokens * width * width  # output projection
        products += 2 * tokens * width * block.mlp.c_fc.out_features
    products += visual.proj.numel()  # the class token alone
    return 2 * int(products)


def _operations(workload: Workload, wave: Wave) -> int:
    return len(wave.pixels) * window_operations(workload.clip.model.visual, wave.placement.grid)


def _crops(image: Segmentation) -> int:
    return sum(box.winner is not None for group in image.groups for box in group.boxes)


def _matrix_rate(workload: Workload) -> float:
    weight = workload.clip.model.visual.conv1.weight
    side = SIDE.get(weight.device.type, SIDE["cpu"])
    square = torch.ones(side, side, dtype=weight.dtype, device=weight.device)
    seconds = take_turns({"product": partial(torch.matmul, square, square)}, workload.config.repeats)
    return 2 * side**3 / statistics.median(seconds["product"])
