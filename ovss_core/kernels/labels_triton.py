"""The kernels of `engine.labels`: from scores on windows' grids to one class a pixel, with no map of pixels a class."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAPS, _PIXELS = 16, 128
"""Maps and neighboring pixels that one program works on at once."""


@triton.jit
def _stitched(scores, indices, shares, first_map, maps, columns, taps, x, exists, MAPS: tl.constexpr):
    """Return the scores of some maps at some pixels of a row: sums over the columns that a pixel lies between."""
    map_ = first_map + tl.arange(0, MAPS)
    total = tl.zeros([MAPS, x.shape[0]], tl.float32)
    for tap in range(taps):
        index = tl.load(indices + x * taps + tap, mask=exists, other=0)
        share = tl.load(shares + x * taps + tap, mask=exists, other=0.0)
        total += share[None, :] * tl.load(
            scores + map_[:, None] * columns + index[None, :],
            mask=(map_ < maps)[:, None] & exists[None, :],
            other=0.0,
        )
    return total


@triton.jit
def _opened(scores, indices, shares, height, width, maps, columns, taps, PIXELS: tl.constexpr):
    """Return a program's image, its pixels' columns, and where its tables begin."""
    image = tl.program_id(0).to(tl.int64)
    x = tl.program_id(2) * PIXELS + tl.arange(0, PIXELS)
    scores += (image * height + tl.program_id(1)) * maps * columns
    return image, x, scores, indices + image * width * taps, shares + image * width * taps


@triton.jit
def _renamed(place, table, boxes, renamed, maps, x, y, claimed):
    """Return which claimed pixels of a row lie in a box, and what their places become there.

    Args:
        table: Which box, and which row of `renamed`.
    """
    box = boxes + table * 4
    reaches = (y >= tl.load(box + 1)) & (y < tl.load(box + 3))
    inside = claimed & (x >= tl.load(box)) & (x < tl.where(reaches, tl.load(box + 2), 0))
    new = tl.load(renamed + table * maps + place, mask=inside, other=0)
    return inside, tl.where(inside, new.to(tl.int32), place)


@triton.jit
def purified_kernel(
    scores,
    indices,
    shares,
    names,
    boxes,
    renamed,
    members,
    labels,
    confidences,
    seconds,
    images,
    height,
    width,
    maps,
    columns,
    taps,
    edits,
    top,
    background,
    RESIDUAL: tl.constexpr,
    RANKS: tl.constexpr,
    MAPS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Label some pixels of a row by the largest map, and let the winners of boxes take what is theirs."""
    image, x, scores, indices, shares = _opened(
        scores, indices, shares, height, width, maps, columns, taps, PIXELS
    )
    exists = x < width
    best = tl.zeros([PIXELS], tl.float32) - 1.0
    second = tl.zeros([PIXELS], tl.float32) - 1.0
    place = tl.zeros([PIXELS], tl.int32)
    wrong = tl.zeros([PIXELS], tl.int32)
    for first in range(0, maps, MAPS):
        number = first + tl.arange(0, MAPS)
        used = tl.load(names + image * maps + number, mask=number < maps, other=-1) >= 0
        values = _stitched(scores, indices, shares, first, maps, columns, taps, x, exists, MAPS)
        wrong += tl.sum((values != values).to(tl.int32), 0)
        values = tl.where(used[:, None], values, -1.0)  # below any score, so that nobody never wins
        largest = tl.max(values, 0)
        # of equals the first
        here = tl.min(tl.where(values == largest[None, :], number[:, None], maps), 0)
        if RANKS:
            others = tl.max(tl.where(number[:, None] == here[None, :], -1.0, values), 0)
            second = tl.maximum(tl.maximum(second, others), tl.minimum(best, largest))
        place = tl.where(largest > best, here, place)
        best = tl.maximum(largest, best)
    best = tl.maximum(best, 0.0)
    first_place = place
    touched = 0
    y = top + tl.program_id(1)
    for edit in range(edits):
        inside, place = _renamed(
            place, edit * images + image, boxes, renamed, maps, x, y, exists & (best > 0)
        )
        touched = tl.maximum(touched, tl.max(inside.to(tl.int32), 0))
    if RANKS:
        if touched > 0:  # a group that was settled counts as one class: where it won no member is a rival
            second = tl.zeros([PIXELS], tl.float32) - 1.0
            for first in range(0, maps, MAPS):
                number = first + tl.arange(0, MAPS)
                used = tl.load(names + image * maps + number, mask=number < maps, other=-1) >= 0
                values = _stitched(scores, indices, shares, first, maps, columns, taps, x, exists, MAPS)
                rival = used[:, None] & (number[:, None] != first_place[None, :])
                now = first_place
                for edit in range(edits):
                    table = edit * images + image
                    inside, new = _renamed(now, table, boxes, renamed, maps, x, y, exists & (best > 0))
                    won = inside & (tl.load(members + table * maps + now, mask=inside, other=0) != 0)
                    member = tl.load(members + table * maps + number, mask=number < maps, other=0) != 0
                    rival = rival & ~(won[None, :] & member[:, None])
                    now = new
                second = tl.maximum(second, tl.max(tl.where(rival, values, -1.0), 0))
        second = tl.maximum(second, 0.0)
    name = tl.load(names + image * maps + place, mask=exists & (place < maps), other=0)
    name = tl.maximum(name, 0)
    if RESIDUAL:
        residual = 1.0 - best >= best
        name = tl.where(residual, background, name)
        if RANKS:
            second = tl.where(residual, best, tl.maximum(second, 1.0 - best))
        best = tl.where(residual, 1.0 - best, best)
    # where a score is no number the confidence is none, and so the sums show it
    best = tl.where(wrong > 0, float("nan"), best)
    target = (image * height + tl.program_id(1)) * width + x
    tl.store(labels + target, name.to(labels.dtype.element_ty), mask=exists)
    tl.store(confidences + target, best, mask=exists)
    if RANKS:
        tl.store(seconds + target, second, mask=exists)


@triton.jit
def probable_kernel(
    scores,
    indices,
    shares,
    classes,
    allowed,
    labels,
    confidences,
    seconds,
    height,
    width,
    maps,
    columns,
    taps,
    floor,
    background,
    EVERYONE: tl.constexpr,
    FLOOR: tl.constexpr,
    RANKS: tl.constexpr,
    MAPS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Label some pixels of a row by the most probable of the phrases that are allowed; all count in the softmax."""
    image, x, scores, indices, shares = _opened(
        scores, indices, shares, height, width, maps, columns, taps, PIXELS
    )
    exists = x < width
    peak = tl.zeros([PIXELS], tl.float32) + float("-inf")
    total = tl.zeros([PIXELS], tl.float32)
    best = tl.zeros([PIXELS], tl.float32) + float("-inf")
    second = tl.zeros([PIXELS], tl.float32) + float("-inf")
    phrase = tl.zeros([PIXELS], tl.int32)
    winner = tl.zeros([PIXELS], tl.int32) - 1
    for first in range(0, maps, MAPS):
        number = first + tl.arange(0, MAPS)
        values = _stitched(scores, indices, shares, first, maps, columns, taps, x, exists, MAPS)
        values = tl.where((number < maps)[:, None], values, float("-inf"))
        larger = tl.maximum(peak, tl.max(values, 0))
        total = total * tl.exp(peak - larger) + tl.sum(tl.exp(values - larger[None, :]), 0)
        peak = larger
        if not EVERYONE:
            takes = tl.load(allowed + image * maps + number, mask=number < maps, other=0) != 0
            values = tl.where(takes[:, None], values, float("-inf"))
        largest = tl.max(values, 0)
        here = tl.min(tl.where(values == largest[None, :], number[:, None], maps), 0)
        if RANKS:  # the best of each tile, and its best of another class, tell the best of two classes
            class_ = tl.load(classes + number, mask=number < maps, other=-1).to(tl.int32)
            found = tl.load(classes + here, mask=exists & (here < maps), other=-1).to(tl.int32)
            others = tl.max(tl.where(class_[:, None] == found[None, :], float("-inf"), values), 0)
            apart = tl.where(largest > best, tl.maximum(best, others), tl.maximum(second, largest))
            second = tl.where(found == winner, tl.maximum(second, others), apart)
            winner = tl.where(largest > best, found, winner)
        phrase = tl.where(largest > best, here, phrase)
        best = tl.maximum(largest, best)
    probability = tl.exp(best - peak) / total
    name = tl.load(classes + phrase, mask=exists & (phrase < maps), other=0)
    if FLOOR:
        name = tl.where(probability < floor, background, name)
    target = (image * height + tl.program_id(1)) * width + x
    tl.store(labels + target, name.to(labels.dtype.element_ty), mask=exists)
    tl.store(confidences + target, probability, mask=exists)
    if RANKS:
        tl.store(seconds + target, probability * tl.exp(second - best), mask=exists)


def launch_purified(
    scores: Tensor,
    taps: tuple[Tensor, Tensor],
    names: Tensor,
    edits: tuple[Tensor, Tensor, Tensor] | None,
    top: int,
    background: int | None,
    labels: Tensor,
    confidences: Tensor,
    seconds: Tensor | None,
) -> None:
    """Label rows of images by purified maps; see `labels.label_by_purified_maps`.

    Args:
        scores: Maps whose rows are those of the images already, contiguous [images, height, maps, columns].
        taps: Columns that each pixel of a row lies between, and their shares, [images, width, taps].
        names: Class of each map [images, maps]; below 0 in unused places.
        edits: Boxes [edits, images, 4], what each map becomes inside [edits, images, maps], and which maps are of the
            group there.
        top: Row of the images that the first row is.
        background: Class that takes what no map claims; None if there is none.
        labels, confidences: Contiguous [images, height, width]; written into.
        seconds: The same for the best score of another class; None where nobody asks.
    """
    images, height, maps, columns = scores.shape
    indices, shares = taps
    width = indices.shape[1]
    names = names.contiguous()
    boxes, renamed, members = edits if edits else (names, names, names)
    purified_kernel[(images, height, triton.cdiv(width, _PIXELS))](
        scores,
        indices,
        shares,
        names,
        boxes.contiguous(),
        renamed.contiguous(),
        members.contiguous().view(torch.int8) if edits else members,
        labels,
        confidences,
        confidences if seconds is None else seconds,
        images,
        height,
        width,
        maps,
        columns,
        indices.shape[2],
        len(boxes) if edits else 0,
        top,
        -1 if background is None else background,
        RESIDUAL=background is not None,
        RANKS=seconds is not None,
        MAPS=_MAPS,
        PIXELS=_PIXELS,
        num_warps=4,
    )


def launch_probable(
    scores: Tensor,
    taps: tuple[Tensor, Tensor],
    classes: Tensor,
    allowed: Tensor | None,
    floor: float,
    background: int | None,
    labels: Tensor,
    confidences: Tensor,
    seconds: Tensor | None,
) -> None:
    """Label rows of images by scaled cosines; see `labels.label_by_probability`.

    Args:
        scores, taps, labels, confidences, seconds: As in `launch_purified`.
        classes: Class of each phrase.
        allowed: Phrases that may win [images, phrases]; None lets all.
        floor: Probability below which a pixel is background.
        background: Class of such pixels; None if there is none.
    """
    images, height, maps, columns = scores.shape
    indices, shares = taps
    width = indices.shape[1]
    has_floor = floor > 0 and background is not None
    probable_kernel[(images, height, triton.cdiv(width, _PIXELS))](
        scores,
        indices,
        shares,
        classes,
        classes if allowed is None else allowed.contiguous().view(torch.int8),
        labels,
        confidences,
        confidences if seconds is None else seconds,
        height,
        width,
        maps,
        columns,
        indices.shape[2],
        floor,
        background if background is not None else -1,
        EVERYONE=allowed is None,
        FLOOR=has_floor,
        RANKS=seconds is not None,
        MAPS=_MAPS,
        PIXELS=_PIXELS,
        num_warps=4,
    )
