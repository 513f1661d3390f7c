"""Kernels are tried on a small picture before they are trusted: a node may lack the compiler that Triton needs, or its card differ.

Both forms compute the same from the same, step by step, so that only broken kernels differ by more than rounding. A worker
whose kernels fail goes on with PyTorch's forms, which wait for the device. One kernel, a product with QuickGELU, may be right
and yet slower than what it stands for: it is used where it won on the worker's own card (`ovss_core.kernels.products`).
"""

import logging
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ovss_core.class_purification.winners import LabelEdits
from ovss_core.config import LabelConfig, WindowConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.label_strips import Labels
from ovss_core.engine.labels import label_by_purified_maps
from ovss_core.engine.waves import Encoded
from ovss_core.errors import ImageError
from ovss_core.images.stitch import Stitcher
from ovss_core.images.windows import WindowLayout
from ovss_core.kernels import give_up, plain_forms, use_kernel
from ovss_core.kernels.products import choose_tile

_LOG = logging.getLogger(__name__)
_FEATURES, _ATTENTION, _SCORES, _LABELS, _TIES = 0.02, 0.05, 0.02, 0.05, 0.01
"""How far the forms may differ: unit features, attention as a share of itself, scores, and the share of pixels; and counts
and sums of labels inside boxes as a share of themselves."""


def trust_kernels(engine: SegmentationEngine) -> SegmentationEngine:
    """Return the engine if its kernels work on its device, else one without them, saying why in the log.

    On a CPU nothing is tried. The trial labels one picture of a few windows with the kernels and without them.
    """
    if not use_kernel(torch.empty(0, device=engine.device)):
        return engine
    room = engine.room
    fault = _fault(engine)
    engine.room = room
    engine.take_timings()
    if not fault:
        choose_product(engine)
        return engine
    _LOG.warning("Triton's kernels are not used here, so the GPU waits more often than it has to: %s", fault)
    give_up()
    return engine.with_vocabulary(engine.text, engine.config)


@torch.inference_mode()
def choose_product(engine: SegmentationEngine) -> None:
    """Choose how the tower multiplies where QuickGELU follows, by timing a feed-forward network on a full batch."""
    encoder = engine.encoder
    block = encoder.blocks[0]
    weight = block.quick_gelu_weight
    if weight is None or weight.element_size() > 2:
        return
    side = engine.config.windows.size
    rows, columns = encoder.grid_of((side, side))
    shape = engine.window_batch, rows * columns + encoder.prefix, weight.shape[1]
    try:
        tokens = torch.randn(shape, dtype=weight.dtype, device=weight.device)
        choose_tile(weight, lambda: block.feed_forward(tokens), milliseconds)
    except torch.OutOfMemoryError:
        _LOG.info("a full batch has no room beside what else the card holds; the plain product is used")


def milliseconds(run: Callable[[], object], turns: int = 5, calls: int = 4) -> float:
    """Return the median time of a call, by the device's own clock."""
    taken = []
    for _ in range(turns + 1):  # the first one warms up
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / calls)
    return float(statistics.median(taken[1:]))


def _fault(engine: SegmentationEngine) -> str:
    """Say what is wrong with the kernels; nothing where they work, or where the plain forms do no better."""
    picture = _picture(engine.config.windows.size)
    try:
        with plain_forms():
            plain = engine.with_vocabulary(engine.text, engine.config)
            [wave] = plain.gather([picture])
            expected = plain.encode(wave)
            if not expected.features.isfinite().all():
                return ""
    except (ImageError, torch.OutOfMemoryError):
        return ""
    try:
        [wave] = engine.gather([picture])
        encoded = engine.encode(wave)
        proposals = engine.propose_encoded(wave, encoded, engine.room).wait()
        [result] = engine.finish(proposals)
    except torch.OutOfMemoryError:
        return ""
    except Exception as error:  # whatever a compiler, a driver or a launch may raise
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if fault := _label_fault(engine.device):
        return fault
    with plain_forms():
        same = plain.propose_encoded(wave, encoded, None).wait()
        [other] = plain.finish(proposals)
    if fault := _encoded_fault(encoded, expected):
        return fault
    ours, theirs = proposals.decisions, same.decisions
    if ours is not None and theirs is not None:
        scores = torch.as_tensor(ours.scores), torch.as_tensor(theirs.scores)
        if _gap(*scores) > _SCORES:
            return f"scores differ by {_gap(*scores):.2g} from those of the plain forms"
    if isinstance(result, ImageError) or isinstance(other, ImageError):
        return "" if isinstance(other, ImageError) else str(result)
    differing = float(np.mean(result.label_map != other.label_map))
    return (
        f"labels differ on {differing:.0%} of the pixels from those of the plain forms"
        if differing > _LABELS
        else ""
    )


@torch.inference_mode()
def _label_fault(device: torch.device) -> str:
    """Say what is wrong with labels inside boxes, which the picture may have none of: few maps, and more than a tile holds."""
    layouts = tuple(WindowLayout.of(*size, WindowConfig(size=64, stride=32)) for size in ((64, 96), (96, 96)))
    stitcher = Stitcher(layouts, (4, 4), ((150, 200), (170, 160)), device)
    chance = torch.Generator().manual_seed(0)
    for places in (5, 40):
        maps = torch.rand(sum(map(len, layouts)), places, 16, generator=chance).to(device)
        classes = torch.arange(places, device=device).expand(2, -1)
        boxes = np.array([[[20, 10, 140, 130], [0, 0, 160, 90]], [[30, 30, 90, 80], [0, 0, 0, 0]]])
        renamed = torch.arange(places, device=device).repeat(2, 2, 1)
        renamed[0, :, :3], renamed[1, 0, 2:5] = 1, 4
        counts = torch.tensor([2, 1], device=device)
        edits = LabelEdits(boxes, torch.from_numpy(boxes).to(device), renamed, counts)
        asked = stitcher.tile(maps), classes, places, None, stitcher, edits, LabelConfig()
        try:
            found = label_by_purified_maps(*asked)
        except torch.OutOfMemoryError:
            return ""
        except Exception as error:  # whatever a compiler, a driver or a launch may raise
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        with plain_forms():
            expected = label_by_purified_maps(*asked)
        tables = (found.pixels, expected.pixels), *_margins(found, expected)
        if any(
            _gap(ours.double(), theirs.double()) > _TIES * theirs.double().abs().mean()
            for ours, theirs in tables
        ):
            return f"labels of {places} maps differ inside boxes from those of the plain forms"
    return ""


def _margins(ours: Labels, theirs: Labels) -> list[tuple[Tensor, Tensor]]:
    if ours.margins is None or theirs.margins is None:
        return []
    return [(ours.margins.sums, theirs.margins.sums), (ours.margins.scores, theirs.margins.scores)]


def _encoded_fault(ours: Encoded, theirs: Encoded) -> str:
    if _gap(ours.features, theirs.features) > _FEATURES:
        return "features differ from those of the plain forms"
    if ours.attention is None or theirs.attention is None:
        return ""
    off = (
        ours.attention.float() - theirs.attention.float()
    ).abs().sum() / theirs.attention.float().abs().sum()
    return "" if float(off) <= _ATTENTION else "attention differs from that of the plain forms"


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """Return the root mean square difference; no number in one alone counts as a large one."""
    apart = (ours.double() - theirs.double()).square()
    apart = torch.where(ours.isnan() & theirs.isnan(), 0, apart).nan_to_num(torch.inf)
    return float(apart.mean().sqrt()) if apart.numel() else 0.0


def _picture(side: int) -> np.ndarray:
    """Draw colored blocks, uint8 [height, width, 3], the same every time."""
    blocks = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    return blocks.repeat(-(-side // 4), 0).repeat(-(-side // 5), 1)
