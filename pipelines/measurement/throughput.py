"""Rates that compare across machines: windows a second, and the share of what matrix products reach here."""

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from ovss_core.inference.proposal import PurifiedClasses
from torch.utils.flop_counter import FlopCounterMode

from pipelines.measurement.engine_times import ENGINE, FLOOR, Row, cut_windows
from pipelines.measurement.timing import seconds_of
from pipelines.measurement.workload import Workload

SIDE = {"cpu": 2048, "cuda": 8192}
TURNS = 5


def throughput(workload: Workload, stages: Sequence[Row]) -> dict[str, float]:
    """Turn the stage times into rates.

    Returns:
        Windows of the run, and per image the classes that are kept and the ambiguity crops of the synthetic
        vocabulary; windows a second of the floor and of the engine with SFP and FreeCP; images a second; 10^9 operations of a window in the plain encoder; 10^12 operations a second of the floor and of a large
        matrix product in the same number format, and the floor's share of the latter.
    """
    seconds = {row.name: row.seconds for row in stages}
    _, _, cut = cut_windows(workload, "sfp")
    windows = sum(len(part) for part in cut)
    operations = _operations(workload)
    reached, possible = operations * windows / seconds[FLOOR], _matrix_rate(workload)
    found = [
        proposal.content for proposal in workload.engine("sfp", "freecp", 150).propose(workload.pictures)
    ]
    purified = [content for content in found if isinstance(content, PurifiedClasses)]
    return {
        "windows": windows,
        "kept_classes_an_image": statistics.mean(len(content.kept) for content in purified),
        "ambiguity_crops_an_image": statistics.mean(len(content.crops) for content in purified),
        "floor_windows_a_second": windows / seconds[FLOOR],
        "engine_windows_a_second": windows / seconds[ENGINE],
        "engine_images_a_second": len(workload.pictures) / seconds[ENGINE],
        "window_gigaflop": operations / 1e9,
        "floor_teraflops": reached / 1e12,
        "matrix_product_teraflops": possible / 1e12,
        "floor_share_of_matrix_product": reached / possible,
    }


def _operations(workload: Workload) -> int:
    """Count the floating-point operations of one window in open_clip's `encode_image`."""
    visual = workload.clip.model.visual
    weight = visual.conv1.weight
    window = torch.zeros(1, 3, *visual.image_size, dtype=weight.dtype, device=weight.device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        visual(window)
    return int(counter.get_total_flops())


def _matrix_rate(workload: Workload) -> float:
    weight = workload.clip.model.visual.conv1.weight
    side = SIDE.get(weight.device.type, SIDE["cpu"])
    square = torch.ones(side, side, dtype=weight.dtype, device=weight.device)
    product = partial(torch.matmul, square, square)
    product()
    return 2 * side**3 / statistics.median(seconds_of(product) for _ in range(TURNS))
