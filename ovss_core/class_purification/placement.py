"""Where the windows of a batch lie: tables that every step reads, made on the CPU and brought to the device once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from ovss_core.transfer import upload


@dataclass(frozen=True)
class Units:
    """What one decision is made for; all counts are known on the CPU.

    Attributes:
        counts: Windows of each unit.
        index: Unit of each window, non-decreasing.
        slots: Window of each unit's slots; a unit with fewer windows than the largest repeats its first.
        used: Which slots hold a window of their own.
    """

    counts: tuple[int, ...]
    index: Int[Tensor, " windows"]
    slots: Int[Tensor, "units slots"]
    used: Bool[Tensor, "units slots"]

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device | str = "cpu") -> "Units":
        """Build the tables of units with so many windows each."""
        return cls._from(counts, upload(_unit_tables(counts), device))

    @classmethod
    def _from(cls, counts: Sequence[int], tables: Mapping[str, Tensor], prefix: str = "") -> "Units":
        return cls(tuple(counts), *(tables[f"{prefix}{name}"] for name in ("index", "slots", "used")))

    @classmethod
    def singles(cls, units: "Units") -> "Units":
        """Return the units of `units` themselves, as if each were one window: what an image decides is its own."""
        index = torch.arange(len(units), device=units.slots.device)
        return cls((1,) * len(units), index, index[:, None], units.used[:, :1])

    def __len__(self) -> int:
        return len(self.counts)

    def reduce(self, values: Num[Tensor, "windows *columns"], how: str) -> Num[Tensor, "units *columns"]:
        """Take the "amin", "amax" or "sum" over the windows of each unit.

        Units of one window each are their windows.
        """
        if self.slots.shape[1] == 1:
            return values
        index = self.index.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
        result = values.new_zeros((len(self), *values.shape[1:]))
        return result.scatter_reduce(0, index, values, how, include_self=False)


def _unit_tables(counts: Sequence[int], prefix: str = "") -> dict[str, np.ndarray]:
    sizes = np.array(counts, np.int64)
    first = sizes.cumsum() - sizes
    place = np.arange(sizes.max(initial=0))
    used = place < sizes[:, None]
    return {
        f"{prefix}index": np.repeat(np.arange(len(sizes)), sizes),
        f"{prefix}slots": np.where(used, first[:, None] + place, first[:, None]),
        f"{prefix}used": used,
    }


@dataclass(frozen=True)
class Placement:
    """Where the windows of a batch lie, all of one size, image after image.

    Attributes:
        grid: Patch rows and columns of a window.
        patch_size: Side of a patch, pixels.
        window_size: Height and width of a window, pixels.
        image_sizes: Height and width of each resized image, pixels.
        images: Each image as one unit.
        windows: Each window as a unit of its own.
        origins: x, y, x, y of each window in its resized image, pixels: what its boxes are moved by.
        image_limits, window_limits: Width and height at which boxes of images and of windows end, pixels.
        cell_rows, cell_columns: How much of each cell of its image's patch lattice each patch of a window covers
            along one axis, pixels. Smaller images fill the first cells of a lattice as large as the largest needs.
    """

    grid: tuple[int, int]
    patch_size: int
    window_size: tuple[int, int]
    image_sizes: tuple[tuple[int, int], ...]
    images: Units
    windows: Units
    origins: Int[Tensor, "windows 4"]
    image_limits: Int[Tensor, "images 2"]
    window_limits: Int[Tensor, "1 2"]
    cell_rows: Float[Tensor, "windows lattice_rows patch_rows"]
    cell_columns: Float[Tensor, "windows lattice_columns patch_columns"]

    @classmethod
    def of(
        cls,
        window_counts: Sequence[int],
        origins: Sequence[tuple[int, int]],
        image_sizes: Sequence[tuple[int, int]],
        grid: tuple[int, int],
        patch_size: int,
        window_size: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> "Placement":
        """Build the tables.

        Args:
            window_counts: Windows of each image.
            origins: y, x of each window in its resized image, pixels.
            image_sizes: Height and width of each resized image, pixels.
            grid: Patch rows and columns of a window.
            patch_size: Side of a patch, pixels.
            window_size: Height and width of a window, pixels.
            device: Where they go.
        """
        single = (1,) * len(origins)
        cells = [_overlaps(axis, origins, image_sizes, grid, patch_size, window_size) for axis in (0, 1)]
        tables = upload(
            {
                **_unit_tables(window_counts, "image_"),
                **_unit_tables(single, "window_"),
                "origins": np.array(origins, np.int64).reshape(-1, 2)[:, [1, 0, 1, 0]],
                "image_limits": np.array(image_sizes, np.int64)[:, ::-1],
                "window_limits": np.array([window_size[::-1]], np.int64),
                "cell_rows": cells[0],
                "cell_columns": cells[1],
            },
            device,
        )
        return cls(
            grid,
            patch_size,
            window_size,
            tuple(image_sizes),
            Units._from(window_counts, tables, "image_"),
            Units._from(single, tables, "window_"),
            *(
                tables[name]
                for name in ("origins", "image_limits", "window_limits", "cell_rows", "cell_columns")
            ),
        )


def _overlaps(
    axis: int,
    origins: Sequence[tuple[int, int]],
    image_sizes: Sequence[tuple[int, int]],
    grid: tuple[int, int],
    cell: int,
    window_size: tuple[int, int],
) -> np.ndarray:
    """Measure, along one axis, how much of each lattice cell each patch covers: [windows, cells, patches], pixels."""
    cells = -(-max(size[axis] for size in image_sizes) // cell)
    size = window_size[axis] / grid[axis]
    origin = np.array([origin[axis] for origin in origins], float)
    start = origin[:, None, None] + size * np.arange(grid[axis])
    edge = cell * np.arange(cells, dtype=float)[:, None]
    covered: np.ndarray = np.minimum(start + size, edge + cell) - np.maximum(start, edge)
    return covered.clip(min=0)
