"""What a refiner is: it fits the stitched score maps of one image to the picture's edges, before pixels get labels."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ovss_core.config import RefinerSettings
from ovss_core.images.stitch import Stitcher, bilinear_matrix


@dataclass(frozen=True)
class ScoreMaps:
    """The score maps of one image at its own size; any maps of any rectangle are stitched when they are asked for.

    Attributes:
        tiled: Cosines with phrases, or purified maps of classes, windows side by side.
        stitcher: Of this image alone.
        vectors: The text vector of each map, L2-normalized.
    """

    tiled: Float[Tensor, "maps grid_height grid_width"]
    stitcher: Stitcher
    vectors: Float[Tensor, "maps channels"]

    def __len__(self) -> int:
        """Count the maps."""
        return len(self.tiled)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.stitcher.size

    def part(self, maps: slice, rows: slice, columns: slice) -> Float[Tensor, "maps height width"]:
        """Stitch some maps of a rectangle."""
        return self.stitcher.stitch(self.tiled[None, maps], rows, columns)[0]


@dataclass(frozen=True)
class Guide:
    """The picture that maps are fitted to.

    Attributes:
        pixels: The resized image as the tower reads it: normalized.
        size: Height and width of the maps in pixels; the picture is upsampled to it bilinearly.
    """

    pixels: Float[Tensor, "3 resized_height resized_width"]
    size: tuple[int, int]

    def part(self, rows: slice, columns: slice) -> Float[Tensor, "3 height width"]:
        """Return a rectangle of the upsampled picture."""
        vertical, horizontal = self._matrices
        upsampled: Tensor = vertical[rows] @ self.pixels @ horizontal[columns].T
        return upsampled

    @cached_property
    def _matrices(self) -> list[Tensor]:
        return [
            bilinear_matrix(length, output).to(self.pixels)
            for length, output in zip(self.pixels.shape[1:], self.size, strict=True)
        ]


@dataclass(frozen=True)
class Piece:
    """Refined values of some maps in a rectangle of the image."""

    maps: slice
    rows: slice
    columns: slice
    values: Float[Tensor, "maps height width"]


class Refiner(ABC):
    """Makes other score maps of an image's score maps and its picture.

    A refiner is one file in this package: subclass, set `name`, and it can be chosen by that name.

    Args:
        settings: The refiner's own (`SegmenterConfig.refiner_settings`); None for its defaults.
    """

    name: ClassVar[str]

    def __init__(self, settings: RefinerSettings | None = None) -> None:
        self.settings = settings

    @abstractmethod
    def refine(self, scores: ScoreMaps, guide: Guide) -> Iterator[Piece]:
        """Yield the refined maps of one image in pieces that bound memory.

        The rectangles cover the image without overlap; the pieces of one follow each other, maps ascending.
        """


def whole(length: int) -> slice:
    """Return the slice of everything."""
    return slice(0, length)


def chunks(length: int, size: int) -> Iterator[slice]:
    """Split a range into slices of at most `size`, one at least."""
    size = max(1, size)
    return (slice(first, min(first + size, length)) for first in range(0, length, size))


def numbers_at_once(device: torch.device) -> int:
    """Return how many numbers a refiner may hold on a device: 128 MiB of a CPU's memory, 1 GiB of a GPU's."""
    return 1 << (25 if device.type == "cpu" else 28)
