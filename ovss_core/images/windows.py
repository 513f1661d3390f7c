"""Where the windows of an image lie, and cutting them out."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ovss_core.config import WindowConfig


@dataclass(frozen=True)
class AxisWindows:
    """The windows along one axis.

    Attributes:
        length: Pixels of the resized image along the axis.
        size: Pixels of one window; smaller than asked where the image is.
        starts: First pixel of each window, ascending; the last one shifts inside the image.
    """

    length: int
    size: int
    starts: tuple[int, ...]


@lru_cache(maxsize=4096)
def axis_windows(length: int, size: int, stride: int) -> AxisWindows:
    """Lay windows of `size` every `stride` pixels so that all of `length` is covered.

    An axis shorter than the window gets one smaller window.

    Examples:
        >>> axis_windows(448, size=224, stride=112).starts
        (0, 112, 224)
        >>> axis_windows(336, size=224, stride=112).starts, axis_windows(500, size=224, stride=112).starts
        ((0, 112), (0, 112, 224, 276))
        >>> axis_windows(100, size=224, stride=112)
        AxisWindows(length=100, size=100, starts=(0,))
    """
    count = max(length - size + stride - 1, 0) // stride + 1
    starts = tuple(max(min(i * stride + size, length) - size, 0) for i in range(count))
    return AxisWindows(length, min(size, length), starts)


@dataclass(frozen=True)
class PatchGrid:
    """A tower's patches on windows.

    Attributes:
        patch_size: Side of a patch, pixels of the windows.
    """

    patch_size: int

    def of(self, window_size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of patches of a window of `window_size` (height, width) pixels."""
        return window_size[0] // self.patch_size, window_size[1] // self.patch_size


@dataclass(frozen=True)
class WindowLayout:
    """The windows of one image: every vertical start with every horizontal one, row by row."""

    vertical: AxisWindows
    horizontal: AxisWindows

    @classmethod
    def of(cls, height: int, width: int, config: WindowConfig) -> "WindowLayout":
        """Lay out the windows of a resized image of `height` x `width` pixels."""
        return cls(
            axis_windows(height, config.size, config.stride), axis_windows(width, config.size, config.stride)
        )

    @classmethod
    def of_image(cls, image: np.ndarray, config: WindowConfig) -> "WindowLayout":
        """Lay out the windows of a resized image [height, width, 3]."""
        return cls.of(image.shape[0], image.shape[1], config)

    def __len__(self) -> int:
        return len(self.vertical.starts) * len(self.horizontal.starts)

    @property
    def window_size(self) -> tuple[int, int]:
        """Height and width of every window."""
        return self.vertical.size, self.horizontal.size

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the resized image."""
        return self.vertical.length, self.horizontal.length

    @property
    def origins(self) -> list[tuple[int, int]]:
        """Top and left of each window, row by row."""
        return [(top, left) for top in self.vertical.starts for left in self.horizontal.starts]

    def scaled(self, factor: int) -> "WindowLayout":
        """Return the same windows of the image at `factor` times its size."""

        def axis(windows: AxisWindows) -> AxisWindows:
            starts = tuple(start * factor for start in windows.starts)
            return AxisWindows(windows.length * factor, windows.size * factor, starts)

        return WindowLayout(axis(self.vertical), axis(self.horizontal))

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Cut the windows out of the resized image [height, width, 3]: [windows, size, size, 3]."""
        height, width = self.window_size
        return np.stack([image[top : top + height, left : left + width] for top, left in self.origins])


def group_alike(kinds: Sequence[Hashable], costs: Sequence[int], limit: int) -> list[list[int]]:
    """Group images of one kind, such as a size of windows, so that the costs of a group are at most `limit`.

    An image that costs more is a group of its own.

    Examples:
        >>> group_alike(["wide", "wide", "high", "wide"], [2, 2, 2, 2], limit=4)
        [[0, 1], [3], [2]]
    """
    by_kind: dict[Hashable, list[int]] = defaultdict(list)
    for image, kind in enumerate(kinds):
        by_kind[kind].append(image)
    groups = []
    for members in by_kind.values():
        group: list[int] = []
        spent = 0
        for image in members:
            if group and spent + costs[image] > limit:
                groups.append(group)
                group, spent = [], 0
            group.append(image)
            spent += costs[image]
        groups.append(group)
    return groups
