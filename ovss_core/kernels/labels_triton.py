"""The kernels of `engine.labels`: from scores on windows' grids to one class a pixel, with no map of pixels a class."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

_MEMBER = 1 << 16
"""What is added to a place in `renamed` to say that it is a member of the group."""
_WARPS = 4
_MAPS, _MORE_MAPS, _PHRASES, _PIXELS, _COLUMNS, _LINES = 16, 32, 32, 128, 64, 16
"""Purified maps (more, where an image keeps more) or phrases, neighboring pixels, and columns of the grids that one program
works on at once; and the rows of pixels that it labels one after the other, by the same shares of the columns."""


@triton.jit
def _shares(across, columns, first, x, exists, COLUMNS: tl.constexpr):
    """Return the shares that some columns of the grids have in some pixels of a row."""
    column = first + tl.arange(0, COLUMNS)
    return tl.load(
        across + x[None, :] * columns + column[:, None],
        mask=(column < columns)[:, None] & exists[None, :],
        other=0.0,
    )


@triton.jit
def _scored(scores, first_map, first, maps, columns, MAPS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the scores of some maps of a row at some columns of the grids."""
    map_ = first_map + tl.arange(0, MAPS)
    column = first + tl.arange(0, COLUMNS)
    return tl.load(
        scores + map_[:, None] * columns + column[None, :],
        mask=(map_ < maps)[:, None] & (column < columns)[None, :],
        other=0.0,
    )


@triton.jit
def _stitched(
    scores,
    across,
    shares,
    first_map,
    maps,
    columns,
    x,
    exists,
    MAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the scores of some maps at some pixels of a row, by a product of tables.

    Each pixel lies between few columns, so most of a product is zeros; to look those few up took longer on an H200.

    Args:
        shares: Of all columns, if they fit into a tile (WHOLE).
    """
    if WHOLE:
        total = tl.dot(
            _scored(scores, first_map, 0, maps, columns, MAPS, COLUMNS), shares, input_precision=PRECISION
        )
    else:
        total = tl.zeros([MAPS, x.shape[0]], tl.float32)
        for first in range(0, columns, COLUMNS):
            table = _scored(scores, first_map, first, maps, columns, MAPS, COLUMNS)
            some = _shares(across, columns, first, x, exists, COLUMNS)
            total = tl.dot(table, some, total, input_precision=PRECISION)
    return total


@triton.jit
def _renamed(place, edit, boxes, renamed, maps, x, y, claimed):
    """Let one edit rename what is claimed of a row of pixels.

    Args:
        edit: Which one, of all images'.
        renamed: What each place becomes, and 1 << 16 more where it is a member of the group.

    Returns:
        The places afterwards, and where the group won.
    """
    box = boxes + edit * 4
    reaches = (y >= tl.load(box + 1)) & (y < tl.load(box + 3))
    inside = claimed & (x >= tl.load(box)) & (x < tl.where(reaches, tl.load(box + 2), 0))
    new = tl.load(renamed + edit * maps + place, mask=inside, other=0)
    return tl.where(inside, new & 0xFFFF, place), new >= 0x10000


@triton.jit
def _is_rival(used, number, first_place, banned, MAPS: tl.constexpr):
    """Say which maps of a tile are other classes' than the one that a pixel's score is of."""
    bit = (banned[None, :] >> tl.arange(0, MAPS)[:, None]) & 1
    return used[:, None] & (number[:, None] != first_place[None, :]) & (bit == 0)


@triton.jit
def purified_kernel(
    scores,
    across,
    names,
    sizes,
    boxes,
    renamed,
    members,
    edits,
    labels,
    confidences,
    seconds,
    images,
    height,
    width,
    maps,
    columns,
    tiles,
    top,
    background,
    EDITS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RANKS: tl.constexpr,
    MAPS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    LINES: tl.constexpr,
):
    """Label some pixels of some rows by the largest map, and let the winners of boxes take what is theirs.

    `members` has a bit for each map of a tile: whether an edit's group counts it.
    """
    image = tl.program_id(0).to(tl.int64)
    x = tl.program_id(2) * PIXELS + tl.arange(0, PIXELS)
    exists = x < tl.load(sizes + image * 2 + 1)
    across += image * width * columns
    shares = _shares(across, columns, 0, x, exists, COLUMNS)
    first_line = tl.program_id(1) * LINES
    last_line = tl.minimum(tl.minimum(first_line + LINES, height), tl.load(sizes + image * 2) - top)
    if EDITS:
        own_edits = tl.load(edits + image)
        # where boxes lie is looked up once for all rows: few rows of few programs are in one
        box = boxes + (tl.arange(0, EDITS) * images + image) * 4
        is_own = tl.arange(0, EDITS) < own_edits
        left = tl.load(box, mask=is_own, other=0)
        right = tl.load(box + 2, mask=is_own, other=0)
        is_near = is_own & (left < (tl.program_id(2) + 1) * PIXELS) & (right > tl.program_id(2) * PIXELS)
        upper = tl.load(box + 1, mask=is_near, other=0)
        lower = tl.load(box + 3, mask=is_near, other=0)
    for line in range(first_line, last_line):
        row = scores + (image * height + line) * maps * columns
        best = tl.zeros([PIXELS], tl.float32) - 1.0
        second = tl.zeros([PIXELS], tl.float32) - 1.0
        place = tl.zeros([PIXELS], tl.int32)
        wrong = tl.zeros([PIXELS], tl.int32)
        values = tl.zeros([MAPS, PIXELS], tl.float32)
        for first in range(0, maps, MAPS):
            number = first + tl.arange(0, MAPS)
            used = tl.load(names + image * maps + number, mask=number < maps, other=-1) >= 0
            if tl.max(used.to(tl.int32), 0) > 0:  # most images keep fewer words than the one that keeps most
                values = _stitched(
                    row, across, shares, first, maps, columns, x, exists, MAPS, COLUMNS, WHOLE, PRECISION
                )
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
        y = top + line
        if EDITS:  # noqa: SIM102  # what is known when it is compiled does not mix with what is not
            if tl.max((is_near & (upper <= y) & (y < lower)).to(tl.int32), 0) > 0:
                claimed = exists & (best > 0)
                first_place = place
                touched = 0
                banned = tl.zeros([PIXELS], tl.int32)
                for edit in range(own_edits):
                    own = edit * images + image
                    place, won = _renamed(place, own, boxes, renamed, maps, x, y, claimed)
                    touched = tl.maximum(touched, tl.max(won.to(tl.int32), 0))
                    if RANKS and ONE_TILE:
                        banned |= tl.where(won, tl.load(members + own), 0)
                if RANKS:  # noqa: SIM102  # what is known when it is compiled does not mix with what is not
                    if touched > 0:
                        # a group that was settled counts as one class: where it won no member is a rival
                        if ONE_TILE:
                            number = tl.arange(0, MAPS)
                            used = tl.load(names + image * maps + number, mask=number < maps, other=-1) >= 0
                            rival = _is_rival(used, number, first_place, banned, MAPS)
                            second = tl.max(tl.where(rival, values, -1.0), 0)
                        else:
                            second = tl.zeros([PIXELS], tl.float32) - 1.0
                            for first in range(0, maps, MAPS):
                                number = first + tl.arange(0, MAPS)
                                used = (
                                    tl.load(names + image * maps + number, mask=number < maps, other=-1) >= 0
                                )
                                values = _stitched(
                                    row,
                                    across,
                                    shares,
                                    first,
                                    maps,
                                    columns,
                                    x,
                                    exists,
                                    MAPS,
                                    COLUMNS,
                                    WHOLE,
                                    PRECISION,
                                )
                                banned = tl.zeros([PIXELS], tl.int32)
                                now = first_place
                                for edit in range(own_edits):
                                    own = edit * images + image
                                    now, won = _renamed(now, own, boxes, renamed, maps, x, y, claimed)
                                    banned |= tl.where(won, tl.load(members + own * tiles + first // MAPS), 0)
                                rival = _is_rival(used, number, first_place, banned, MAPS)
                                second = tl.maximum(second, tl.max(tl.where(rival, values, -1.0), 0))
        if RANKS:
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
        target = (image * height + line) * width + x
        tl.store(labels + target, name.to(labels.dtype.element_ty), mask=exists)
        tl.store(confidences + target, best, mask=exists)
        if RANKS:
            tl.store(seconds + target, second, mask=exists)


@triton.jit
def probable_kernel(
    scores,
    across,
    classes,
    allowed,
    sizes,
    labels,
    confidences,
    seconds,
    height,
    width,
    maps,
    columns,
    top,
    floor,
    background,
    EVERYONE: tl.constexpr,
    FLOOR: tl.constexpr,
    RANKS: tl.constexpr,
    MAPS: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    LINES: tl.constexpr,
):
    """Label some pixels of some rows by the most probable of the phrases that are allowed; all count in the softmax."""
    image = tl.program_id(0).to(tl.int64)
    x = tl.program_id(2) * PIXELS + tl.arange(0, PIXELS)
    exists = x < tl.load(sizes + image * 2 + 1)
    across += image * width * columns
    shares = _shares(across, columns, 0, x, exists, COLUMNS)
    first_line = tl.program_id(1) * LINES
    last_line = tl.minimum(tl.minimum(first_line + LINES, height), tl.load(sizes + image * 2) - top)
    for line in range(first_line, last_line):
        row = scores + (image * height + line) * maps * columns
        peak = tl.zeros([PIXELS], tl.float32) + float("-inf")
        total = tl.zeros([PIXELS], tl.float32)
        best = tl.zeros([PIXELS], tl.float32) + float("-inf")
        second = tl.zeros([PIXELS], tl.float32) + float("-inf")
        phrase = tl.zeros([PIXELS], tl.int32)
        winner = tl.zeros([PIXELS], tl.int32) - 1
        for first in range(0, maps, MAPS):
            number = first + tl.arange(0, MAPS)
            values = _stitched(
                row, across, shares, first, maps, columns, x, exists, MAPS, COLUMNS, WHOLE, PRECISION
            )
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
        target = (image * height + line) * width + x
        tl.store(labels + target, name.to(labels.dtype.element_ty), mask=exists)
        tl.store(confidences + target, probability, mask=exists)
        if RANKS:
            tl.store(seconds + target, probability * tl.exp(second - best), mask=exists)


def _cut(height: int, width: int, columns: int) -> tuple[tuple[int, int], dict[str, int | str]]:
    """Return how many programs share rows and pixels, and how they cut."""
    across = max(16, min(_COLUMNS, triton.next_power_of_2(columns)))
    programs = triton.cdiv(height, _LINES), triton.cdiv(width, _PIXELS)
    return programs, {
        "PIXELS": _PIXELS,
        "COLUMNS": across,
        "WHOLE": columns <= across,
        # as torch's own products here; three in TF32 are as exact as float32
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
        "LINES": _LINES,
        "num_warps": _WARPS,
    }


def launch_purified(
    scores: Tensor,
    across: Tensor,
    names: Tensor,
    sizes: Tensor,
    edits: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    top: int,
    background: int | None,
    labels: Tensor,
    confidences: Tensor,
    seconds: Tensor | None,
) -> None:
    """Label rows of images by purified maps; see `labels.label_by_purified_maps`.

    Args:
        scores: Maps whose rows are those of the images already, contiguous [images, height, maps, columns].
        across: Shares of the columns in each pixel of a row, contiguous [images, width, columns].
        names: Class of each map [images, maps]; below 0 in unused places.
        sizes: Height and width of each image [images, 2]; what lies outside is not written.
        edits: Boxes [edits, images, 4], what each map becomes inside [edits, images, maps], which maps are of the
            group there, and how many edits each image has [images].
        top: Row of the images that the first row is.
        background: Class that takes what no map claims; None if there is none.
        labels, confidences: Contiguous [images, height, width]; written into.
        seconds: The same for the best score of another class; None where nobody asks.
    """
    images, height, maps, columns = scores.shape
    width = across.shape[1]
    names = names.contiguous()
    (rows, pixels), cut = _cut(height, width, columns)
    tile = _MAPS if maps <= _MAPS else _MORE_MAPS
    tiles = triton.cdiv(maps, tile)
    boxes = renamed = bits = counts = names
    most = 0
    if edits:
        boxes, becomes, members, counts = edits
        renamed = torch.add(becomes.int(), members, alpha=_MEMBER)
        bit = torch.ones(tile, dtype=torch.int32, device=names.device).cumsum(0, dtype=torch.int32) - 1
        apart = F.pad(members, (0, tiles * tile - maps)).unflatten(2, (tiles, tile))
        bits = (apart.int() << bit).sum(3, dtype=torch.int32)
        most = max(triton.next_power_of_2(len(boxes)), 2)
    purified_kernel[(images, rows, pixels)](
        scores,
        across,
        names,
        sizes,
        boxes.contiguous(),
        renamed,
        bits,
        counts,
        labels,
        confidences,
        confidences if seconds is None else seconds,
        images,
        height,
        width,
        maps,
        columns,
        tiles,
        top,
        -1 if background is None else background,
        EDITS=most,
        RESIDUAL=background is not None,
        RANKS=seconds is not None,
        MAPS=tile,
        ONE_TILE=tiles == 1,
        **cut,
    )


def launch_probable(
    scores: Tensor,
    across: Tensor,
    classes: Tensor,
    allowed: Tensor | None,
    sizes: Tensor,
    top: int,
    floor: float,
    background: int | None,
    labels: Tensor,
    confidences: Tensor,
    seconds: Tensor | None,
) -> None:
    """Label rows of images by scaled cosines; see `labels.label_by_probability`.

    Args:
        scores, across, sizes, top, labels, confidences, seconds: As in `launch_purified`.
        classes: Class of each phrase.
        allowed: Phrases that may win [images, phrases]; None lets all.
        floor: Probability below which a pixel is background.
        background: Class of such pixels; None if there is none.
    """
    images, height, maps, columns = scores.shape
    width = across.shape[1]
    has_floor = floor > 0 and background is not None
    (rows, pixels), cut = _cut(height, width, columns)
    probable_kernel[(images, rows, pixels)](
        scores,
        across,
        classes,
        classes if allowed is None else allowed.contiguous().view(torch.int8),
        sizes,
        labels,
        confidences,
        confidences if seconds is None else seconds,
        height,
        width,
        maps,
        columns,
        top,
        floor,
        background if background is not None else -1,
        EVERYONE=allowed is None,
        FLOOR=has_floor,
        RANKS=seconds is not None,
        MAPS=_PHRASES,
        **cut,
    )
