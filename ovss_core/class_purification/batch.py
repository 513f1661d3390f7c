"""What purification is given, the windows of several images, and what it decides for: images or windows."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class PurificationInput:
    """Windows of one batch, all of one grid, of one or more images.

    Attributes:
        features: Dense features of the host, L2-normalised, patches row-major.
        attention: Mean over blocks 1..L-1 and heads of the patch-patch attention, class column dropped.
        grid: Patch rows and columns.
        image_index: Image of each window, 0..images-1, non-decreasing.
        window_origin: y, x of each window in its resized image, pixels.
        image_sizes: Height and width of each resized image, pixels.
        patch_size: Side of a patch, pixels.
        window_size: Height and width of a window, pixels.
    """

    features: Float[Tensor, "windows patches channels"]
    attention: Float[Tensor, "windows patches patches"]
    grid: tuple[int, int]
    image_index: Int[Tensor, " windows"]
    window_origin: Int[Tensor, "windows 2"]
    image_sizes: list[tuple[int, int]]
    patch_size: int
    window_size: tuple[int, int]


@dataclass(frozen=True)
class Units:
    """What one decision is made for: a whole image (all its windows) or each window by itself.

    Attributes:
        index: The unit of each window, non-decreasing.
        count: Number of units.
    """

    index: Int[Tensor, " windows"]
    count: int

    @cached_property
    def sizes(self) -> Int[Tensor, " units"]:
        """Windows of each unit."""
        return torch.bincount(self.index, minlength=self.count)

    @cached_property
    def first(self) -> Int[Tensor, " units"]:
        """First window of each unit."""
        return self.sizes.cumsum(0) - self.sizes

    def reduce(self, values: Float[Tensor, "*rows windows"], how: str) -> Float[Tensor, "*rows units"]:
        """Take the "amin" or "amax" over the windows of each unit."""
        result = values.new_zeros((*values.shape[:-1], self.count))
        return result.scatter_reduce(-1, self.index.expand_as(values), values, how, include_self=False)
