"""What every rule of labelling shares: strips of rows that bound memory, and what is counted as they are labelled."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from ovss_core.class_purification.winners import LabelEdits
from ovss_core.config import LabelConfig
from ovss_core.engine.refined import RefinedScores
from ovss_core.images.stitch import Stitcher
from ovss_core.kernels.class_sums import add_class_sums, add_margin_sums
from ovss_core.results import SURE_MARGIN, ignore_index

CPU_BUDGET, DEVICE_BUDGET = 1_000_000, 1 << 28
"""Numbers of one strip: as many as a CPU's caches hold, or as fill a GPU."""
_WIDER = 4
"""An image is at least so many times as wide as the grids of its windows, where windows lie as in the papers."""
_TABLES = 8
"""Numbers a pixel that are held beside the scores, with all that becomes of them."""


@dataclass(frozen=True)
class Labels:
    """One class a pixel, for each image of a batch.

    Attributes:
        label_maps: Class index of every pixel; uint8 up to 255 classes, int32 above. Padding holds anything.
        pixels: Pixels of each class.
        confidence_sums: Sum of the winning scores over each class's pixels.
        margins: How sure they are, where that is asked for.
    """

    label_maps: Integer[Tensor, "images height width"]
    pixels: Int[Tensor, "images classes"]
    confidence_sums: Float[Tensor, "images classes"]
    margins: "Margins | None" = None


@dataclass(frozen=True)
class Margins:
    """How far the winning class is ahead of the second one, for each image of a batch.

    Attributes:
        scores: Sum of the winning scores over all pixels, those that are left out included.
        sums: Sum of the margins over the same pixels.
        sure: Pixels whose margin is at least `SURE_MARGIN`.
        pictures: The margin of every pixel in 255 steps, where that is asked for. Padding holds anything.
    """

    scores: Float[Tensor, " images"]
    sums: Float[Tensor, " images"]
    sure: Int[Tensor, " images"]
    pictures: UInt8[Tensor, "images height width"] | None

    def tensors(self) -> list[Tensor]:
        """Return the tables, the pictures last, in the order of the fields."""
        pictures = [] if self.pictures is None else [self.pictures]
        return [self.scores, self.sums, self.sure, *pictures]


def budget(device: torch.device) -> int:
    """Return how many scores are held at once on a device."""
    return CPU_BUDGET if device.type == "cpu" else DEVICE_BUDGET


def held_maps(maps: int, device: torch.device) -> int:
    """Return how many maps of an image's size labelling by so many maps holds at once.

    A kernel holds them at the width of the windows' grids, which is a fraction of the image's.
    """
    return maps if device.type == "cpu" else _TABLES + -(-maps // _WIDER)


class Collector:
    """Takes the labels of strips, and counts pixels and confidences by class as they come.

    Attributes:
        ranks: Whether the second best score is wanted.
    """

    def __init__(
        self, stitcher: Stitcher, classes: int, device: torch.device, config: LabelConfig | None = None
    ) -> None:
        config = config or LabelConfig(confidence="none")
        images, (height, width) = len(stitcher.sizes), stitcher.size
        dtype = torch.uint8 if classes <= 255 else torch.int32
        self.ranks = config.confidence != "none"
        self._floor = config.min_confidence
        self._ignore = ignore_index(classes)
        self._scores = torch.zeros(images, dtype=torch.float64, device=device)
        self._margins = torch.zeros_like(self._scores)
        self._sure = torch.zeros(images, dtype=torch.int64, device=device)
        self._pictures = None
        if config.confidence == "pixel":
            self._pictures = torch.empty(images, height, width, dtype=torch.uint8, device=device)
        # a kernel writes nothing outside an image, and what lies there must be a class all the same
        self.label_maps = torch.zeros(images, height, width, dtype=dtype, device=device)
        self._inside = None if all(size == stitcher.size for size in stitcher.sizes) else stitcher.inside
        self._pixels = torch.zeros(images, classes, dtype=torch.int64, device=device)
        self._sums = torch.zeros(images, classes, dtype=torch.float64, device=device)

    def tables(self, rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return contiguous tables that a kernel fills for some rows: labels, their scores, and the second best ones."""
        images, height, width = self.label_maps.shape
        shape = images, rows.stop - rows.start, width
        own = shape[1] == height and not self._floor
        label = self.label_maps if own else self.label_maps.new_zeros(shape)
        score = torch.empty(shape, dtype=torch.float32, device=label.device)
        return label, score, torch.empty_like(score) if self.ranks else None

    def add(self, rows: slice, label: Tensor, confidence: Tensor, second: Tensor | None = None) -> None:
        """Take up some rows.

        Args:
            second: The best score that another class has, where it is wanted.
        """
        inside = None if self._inside is None else self._inside[:, rows]
        counted = inside
        if second is not None:
            tables = self._scores, self._margins, self._sure
            add_margin_sums(confidence, second, inside, SURE_MARGIN, *tables)
            levels = (
                None  # the margin in the picture's 255 steps, so that a floor means the same to its readers
            )
            if self._pictures is not None or self._floor > 0:
                levels = (confidence - second).clamp_(0, 1).mul_(255).round_()
            if self._pictures is not None and levels is not None:
                self._pictures[:, rows] = levels.to(torch.uint8)
            if self._floor > 0 and levels is not None:
                unsure = levels < 255 * self._floor
                counted = ~unsure if inside is None else inside & ~unsure
                # a place that is not counted may have any class below the number of classes
                self.label_maps[:, rows] = label.masked_fill(unsure, self._ignore).to(self.label_maps.dtype)
                add_class_sums(label, confidence, counted, self._pixels, self._sums)
                return
        if label is not self.label_maps:
            self.label_maps[:, rows] = label.to(self.label_maps.dtype)
        add_class_sums(label, confidence, counted, self._pixels, self._sums)

    def labels(self) -> Labels:
        """Return what was collected."""
        margins = Margins(self._scores, self._margins, self._sure, self._pictures) if self.ranks else None
        return Labels(self.label_maps, self._pixels, self._sums, margins)


def device_strips(stitcher: Stitcher, tiled: Tensor) -> list[slice]:
    """Split the rows so that neither scores on the grids' columns nor the tables of pixels are too large."""
    numbers = max(tiled.shape[1] * tiled.shape[3], _TABLES * stitcher.size[1])
    return stitcher.strips(1, budget(tiled.device), numbers)


def strips_of(stitcher: Stitcher, tiled: Tensor, refined: RefinedScores | None) -> list[slice]:
    """Split the rows so that memory is bounded; refined scores are bounded in their own way, and come whole."""
    if refined is not None:
        return [slice(0, stitcher.size[0])]
    return stitcher.strips(tiled.shape[1], budget(tiled.device))


def rename(
    place: Tensor,
    positive: Tensor | None,
    edits: LabelEdits,
    rows: slice,
    others: Tensor | None = None,
    least: float = -1.0,
) -> None:
    """Let each winner take the pixels of its group inside its box, where anybody claims them at all.

    The winner gets the largest score of its group, and that is the score already there: only names change.

    Args:
        positive: Where anybody claims them; None everywhere.
        others: Scores without the winner's. The group that won counts as one class: there its members get `least`.
    """
    device = place.device
    y = torch.arange(rows.start, rows.stop, device=device)
    members = edits.members if others is not None else edits.places
    for bounds, boxes, renamed, member in zip(edits.bounds, edits.boxes, edits.places, members, strict=True):
        real = bounds[bounds[:, 2] > bounds[:, 0]]
        if not len(real):
            continue
        left, top = real[:, 0].min(), max(real[:, 1].min() - rows.start, 0)
        right, bottom = real[:, 2].max(), real[:, 3].max() - rows.start
        if top >= min(bottom, len(y)):
            continue
        area = slice(None), slice(top, bottom), slice(left, right)
        now = place[area]
        x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
        lines = (y[area[1]] >= y0) & (y[area[1]] < y1)
        x = torch.arange(left, left + now.shape[2], device=device)
        inside = lines[:, :, None] & ((x >= x0) & (x < x1))[:, None, :]
        if positive is not None:
            inside &= positive[area]
        new = renamed.gather(1, now.flatten(1)).view_as(now)
        place[area] = torch.where(inside, new, now)
        if others is not None:
            won = inside & member.gather(1, now.flatten(1)).view_as(now)
            scores = others[:, :, area[1], area[2]]
            scores.masked_fill_(won[:, None] & member[:, :, None, None], least)
