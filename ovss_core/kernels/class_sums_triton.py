"""The kernels of `class_sums`."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def class_sums_kernel(
    label,
    confidence,
    inside,
    pixels,
    sums,
    places,
    classes,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up a block of an image's pixels, class after class of those that it holds."""
    image = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wanted = place < places
    if MASKED:
        wanted = wanted & (tl.load(inside + image * places + place, mask=wanted, other=0) != 0)
    name = tl.load(label + image * places + place, mask=wanted, other=0).to(tl.int32)
    name = tl.where(wanted, name + 1, 0)
    value = tl.load(confidence + image * places + place, mask=wanted, other=0.0).to(tl.float32)
    largest = tl.max(name, 0)
    while largest > 0:
        hit = name == largest
        row = image * classes + largest - 1
        tl.atomic_add(pixels + row, tl.sum(hit.to(tl.int32), 0).to(tl.int64))
        tl.atomic_add(sums + row, tl.sum(tl.where(hit, value, 0.0).to(tl.float64), 0))
        name = tl.where(hit, 0, name)
        largest = tl.max(name, 0)


def launch_class_sums(
    label: Tensor, confidence: Tensor, inside: Tensor | None, pixels: Tensor, sums: Tensor
) -> None:
    """Run the kernel; see `class_sums.add_class_sums`."""
    label, confidence = label.contiguous(), confidence.contiguous()
    places = label[0].numel()
    class_sums_kernel[(len(label), triton.cdiv(places, _BLOCK))](
        label,
        confidence,
        label if inside is None else inside.contiguous(),
        pixels,
        sums,
        places,
        pixels.shape[1],
        MASKED=inside is not None,
        BLOCK=_BLOCK,
        num_warps=8,
    )


@triton.jit
def margin_sums_kernel(
    confidence,
    second,
    inside,
    scores,
    margins,
    sure,
    places,
    least,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up a block of an image's confidences, margins, and pixels that are sure."""
    image = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wanted = place < places
    if MASKED:
        wanted = wanted & (tl.load(inside + image * places + place, mask=wanted, other=0) != 0)
    best = tl.load(confidence + image * places + place, mask=wanted, other=0.0)
    margin = best - tl.load(second + image * places + place, mask=wanted, other=0.0)
    margin = tl.minimum(tl.maximum(margin, 0.0), 1.0)
    tl.atomic_add(scores + image, tl.sum(best.to(tl.float64), 0))
    tl.atomic_add(margins + image, tl.sum(margin.to(tl.float64), 0))
    tl.atomic_add(sure + image, tl.sum((wanted & (margin >= least)).to(tl.int32), 0).to(tl.int64))


def launch_margin_sums(
    confidence: Tensor,
    second: Tensor,
    inside: Tensor | None,
    least: float,
    scores: Tensor,
    margins: Tensor,
    sure: Tensor,
) -> None:
    """Run the kernel; see `class_sums.add_margin_sums`."""
    confidence, second = confidence.contiguous(), second.contiguous()
    places = confidence[0].numel()
    margin_sums_kernel[(len(confidence), triton.cdiv(places, _BLOCK))](
        confidence,
        second,
        confidence if inside is None else inside.contiguous(),
        scores,
        margins,
        sure,
        places,
        least,
        MASKED=inside is not None,
        BLOCK=_BLOCK,
        num_warps=8,
    )
