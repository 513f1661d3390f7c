"""What stage 1 hands to stage 2 about a batch of images, and its form as Arrow rows where a process ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ovss_core.class_purification.class_maps import NOBODY
from ovss_core.class_purification.winners import Regions
from ovss_core.config import WindowConfig
from ovss_core.images.windows import WindowLayout
from ovss_core.transfer import Download, beside, upload

MAP_LEVELS = 65_535
"""Purified maps lie in [0, 1] and are held to 16 bits, on both roads: one image gets one mask whether or not its
proposal crosses from one process to another."""


COLUMNS: dict[str, type[np.generic]] = {
    "size": np.int32,
    "resized": np.int32,
    "scored": np.uint8,
    "maps": np.uint8,
    "kept": np.int32,
    "scores": np.float32,
    "group_sizes": np.int32,
    "members": np.int32,
    "region_group": np.int32,
    "region_window": np.int32,
    "region_corners": np.int32,
    "crops": np.uint8,
}
"""What a row holds, and of which numbers its bytes are. Maps are the bytes of uint16 levels, or, without purification, of
float32; what follows them is then empty."""


@dataclass(frozen=True)
class Decisions:
    """What purification decided for a batch of images, in CPU memory.

    Attributes:
        scores: Redundancy score of every class, nan for the background class.
        classes: Classes that each image keeps, ascending; `NOBODY` behind the last.
        regions: Boxes that several classes claim, in pixels of the resized image.
    """

    scores: Float[np.ndarray, "images classes"]
    classes: Int[np.ndarray, "images places"]
    regions: Regions


@dataclass(frozen=True)
class Proposals:
    """Everything that stage 2 needs to label the images of one batch, whose windows all have one size.

    Attributes:
        sizes: Height and width of each image.
        layouts: Where its windows lie in the resized image.
        maps: A map for each window and kept class (purified), phrase (cosines), or feature dimension. The windows
            lie image after image.
        scored: Without purification: whether the maps are cosines; features are smaller where a vocabulary has more
            phrases than they have dimensions.
        sound: Whether the features of each image's windows are numbers; the rest means nothing where they are not.
        decisions: With purification.
        crops: Pixels of the regions that have an area, in their order, RGB.
    """

    sizes: tuple[tuple[int, int], ...]
    layouts: tuple[WindowLayout, ...]
    maps: Float[Tensor, "windows maps patches"]
    scored: bool = True
    sound: Bool[np.ndarray, " images"] | None = None
    decisions: Decisions | None = None
    crops: UInt8[Tensor, "areas side side 3"] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def sound_images(self) -> list[bool]:
        """Whether the features of each image's windows are numbers."""
        sound: list[bool] = [True] * len(self) if self.sound is None else self.sound.tolist()
        return sound

    @property
    def window_counts(self) -> tuple[int, ...]:
        """Windows of each image."""
        return tuple(map(len, self.layouts))

    @property
    def scales(self) -> list[tuple[float, float]]:
        """y and x factors from each resized image to the image."""
        return [
            (size[0] / layout.image_size[0], size[1] / layout.image_size[1])
            for size, layout in zip(self.sizes, self.layouts, strict=True)
        ]

    def windows_of(self, images: slice) -> slice:
        """Return the windows of some neighboring images."""
        ends = np.cumsum([0, *self.window_counts])
        return slice(int(ends[images.start]), int(ends[images.stop]))

    def to_rows(self) -> list[dict[str, memoryview]]:
        """Return one row of `COLUMNS` an image, for `from_rows`; nothing is copied once it is in CPU memory.

        Only the places that an image uses are fetched from the device; work that is queued there is not waited for.
        """
        pieces: dict[str, Sequence[np.ndarray]] = dict.fromkeys(COLUMNS, [np.empty(0)] * len(self))
        pieces["size"] = list(np.array(self.sizes))
        pieces["resized"] = list(np.array([layout.image_size for layout in self.layouts]))
        if self.decisions is None or self.crops is None:
            pieces |= self._phrases()
        else:
            pieces |= self._purified(self.decisions, self.crops)
        return [
            {
                name: np.ascontiguousarray(values[image], COLUMNS[name]).reshape(-1).view(np.uint8).data
                for name, values in pieces.items()
            }
            for image in range(len(self))
        ]

    def _phrases(self) -> dict[str, Sequence[np.ndarray]]:
        with beside(self.maps.device):
            [maps] = Download([self.maps.float()]).wait()
        ends = np.cumsum(self.window_counts)
        return {
            "scored": [np.array([self.scored])] * len(self),
            "maps": np.split(np.ascontiguousarray(maps).view(np.uint8), ends[:-1]),
        }

    def _purified(
        self, decisions: Decisions, crops: UInt8[Tensor, "areas side side 3"]
    ) -> dict[str, Sequence[np.ndarray]]:
        classes, regions = decisions.classes, decisions.regions
        used = (classes != NOBODY).repeat(self.window_counts, 0)
        with beside(self.maps.device):
            levels, pixels = Download([_levels(self.maps, used), crops]).wait()
        rows = np.cumsum(used.sum(1))[np.cumsum(self.window_counts) - 1]
        others = np.arange(1, len(self))
        region, group = regions.image.searchsorted(others), regions.group_image.searchsorted(others)
        areas = np.concatenate([[0], np.cumsum(regions.has_area)])[region]
        taken = regions.members != NOBODY
        names = np.concatenate([[0], np.cumsum(taken.sum(1))])[group]
        return {
            "kept": [row[row != NOBODY] for row in classes],
            "maps": np.split(levels.view(np.uint8), rows[:-1]),
            "scores": list(decisions.scores),
            "group_sizes": np.split(taken.sum(1), group),
            "members": np.split(regions.members[taken], names),
            "region_group": np.split(regions.group - regions.group_image.searchsorted(regions.image), region),
            "region_window": np.split(regions.window, region),
            "region_corners": np.split(regions.corners, region),
            "crops": np.split(pixels, areas),
        }

    @classmethod
    def from_rows(
        cls, rows: Sequence[Mapping[str, Any]], windows: WindowConfig, patches: int, crop_size: int
    ) -> "Proposals":
        """Put rows of `to_rows` together, whichever batches they come from.

        Args:
            rows: Of images whose windows have one size; their values are bytes of any kind.
            windows: How the images were cut.
            patches: Patches of a window.
            crop_size: Side of a crop in pixels.
        """
        found = {name: [np.frombuffer(row[name], kind) for row in rows] for name, kind in COLUMNS.items()}
        layouts = tuple(WindowLayout.of(*size_in(row, "resized"), windows) for row in rows)
        sizes = tuple(size_in(row, "size") for row in rows)
        if not len(found["scores"][0]):
            maps = np.concatenate(found["maps"]).view(np.float32).reshape(sum(map(len, layouts)), -1, patches)
            return cls(sizes, layouts, torch.from_numpy(maps), bool(found["scored"][0][0]))
        most = max(1, *map(len, found["kept"]))
        classes = np.full((len(rows), most), NOBODY, np.int64)
        purified = np.zeros((sum(map(len, layouts)), most, patches), np.float32)
        first = 0
        for names, kept, levels, layout in zip(classes, found["kept"], found["maps"], layouts, strict=True):
            names[: len(kept)] = kept
            last = first + len(layout)
            purified[first:last, : len(kept)] = levels.view(np.uint16).reshape(-1, len(kept), patches)
            first = last
        crops = np.concatenate(found["crops"]).reshape(-1, crop_size, crop_size, 3)
        return cls(
            sizes,
            layouts,
            torch.from_numpy(purified).div_(MAP_LEVELS),
            decisions=Decisions(np.stack(found["scores"]), classes, _regions_of_rows(found)),
            crops=torch.from_numpy(crops),
        )


def size_in(row: Mapping[str, Any], name: Literal["size", "resized"]) -> tuple[int, int]:
    """Read height and width of the image, or of the resized image, in a row of `Proposals.to_rows`."""
    height, width = np.frombuffer(row[name], COLUMNS[name]).tolist()
    return height, width


def _levels(
    maps: Float[Tensor, "windows places patches"], used: Bool[np.ndarray, "windows places"]
) -> Tensor:
    """Return the maps of the places that are used, window by window, in `MAP_LEVELS` as the bits of uint16."""
    rows = upload({"rows": np.flatnonzero(used)}, maps.device)["rows"]
    chosen = maps.reshape(-1, maps.shape[2]).index_select(0, rows)
    return (chosen * MAP_LEVELS).round().to(torch.int32).to(torch.int16)


def _regions_of_rows(found: Mapping[str, Sequence[np.ndarray]]) -> Regions:
    """Number the groups of all images through, and pad their members to the largest group."""
    sizes = np.concatenate(found["group_sizes"])
    members = np.full((len(sizes), sizes.max(initial=0)), NOBODY, np.int64)
    members[np.arange(members.shape[1]) < sizes[:, None]] = np.concatenate(found["members"])
    counts = [len(windows) for windows in found["region_window"]]
    groups = [len(sizes) for sizes in found["group_sizes"]]
    first = np.cumsum([0, *groups[:-1]])
    group, window, corners = (
        np.concatenate(found[f"region_{name}"]).astype(np.int64) for name in ("group", "window", "corners")
    )
    return Regions(
        image=np.repeat(np.arange(len(counts)), counts),
        window=window,
        group=group + np.repeat(first, counts),
        corners=corners.reshape(-1, 4),
        members=members,
    )
