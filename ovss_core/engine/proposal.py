"""What stage 1 hands to stage 2 about a batch of images, and its form as Arrow rows where a process ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ovss_core.class_purification.class_maps import NOBODY
from ovss_core.class_purification.winners import Regions
from ovss_core.config import WindowConfig
from ovss_core.images.windows import WindowLayout
from ovss_core.regions import RegionMap

MAP_LEVELS = 65_535
"""Purified maps lie in [0, 1] and are held to 16 bits, on both roads: one image gets one mask whether or not its
proposal crosses from one process to another."""


NO_ROW: dict[str, Any] = dict.fromkeys(
    (
        *("size", "resized", "scored", "maps", "kept", "scores", "groups"),
        *("region_group", "region_window", "region_corners", "crops", "region_map"),
    )
)
"""The names of a row; without purification all but the first four and the last stay empty."""


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
        region_maps: Each image's region map, where regions are to vote.
    """

    sizes: tuple[tuple[int, int], ...]
    layouts: tuple[WindowLayout, ...]
    maps: Float[Tensor, "windows maps patches"]
    scored: bool = True
    sound: Bool[np.ndarray, " images"] | None = None
    decisions: Decisions | None = None
    crops: UInt8[Tensor, "areas side side 3"] | None = None
    region_maps: tuple[RegionMap | None, ...] | None = None

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

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row of plain values and arrays an image, for `from_rows`; each has the same names."""
        rows = self._phrase_rows() if self.decisions is None or self.crops is None else self._purified_rows()
        for row, regions in zip(rows, self.region_maps or (None,) * len(self), strict=True):
            row["region_map"] = None if regions is None else regions.to_bytes()
        return rows

    def _purified_rows(self) -> list[dict[str, Any]]:
        assert self.decisions is not None
        assert self.crops is not None
        decided, regions = self.decisions, self.decisions.regions
        maps = (self.maps * MAP_LEVELS).round().to(torch.int32).cpu().numpy().astype(np.uint16)
        crops = self.crops.cpu().numpy()
        first_window = first_crop = 0
        rows = []
        for image, layout in enumerate(self.layouts):
            windows = slice(first_window, first_window + len(layout))
            kept = decided.classes[image][decided.classes[image] != NOBODY]
            mine = np.flatnonzero(regions.image == image)
            groups = np.flatnonzero(regions.group_image == image)
            areas = int(regions.has_area[mine].sum())
            rows.append(
                NO_ROW
                | {
                    "size": self.sizes[image],
                    "resized": layout.image_size,
                    "kept": kept,
                    "scores": decided.scores[image].tobytes(),
                    "maps": maps[windows, : len(kept)].tobytes(),
                    "groups": [members[members != NOBODY] for members in regions.members[groups]],
                    "region_group": regions.group[mine] - (groups[0] if len(groups) else 0),
                    "region_window": regions.window[mine],
                    "region_corners": regions.corners[mine].ravel(),
                    "crops": crops[first_crop : first_crop + areas].tobytes(),
                }
            )
            first_window, first_crop = windows.stop, first_crop + areas
        return rows

    def _phrase_rows(self) -> list[dict[str, Any]]:
        values = self.maps.float().cpu().numpy()
        return [
            NO_ROW
            | {
                "size": size,
                "resized": layout.image_size,
                "scored": self.scored,
                "maps": values[self.windows_of(slice(image, image + 1))].tobytes(),
            }
            for image, (size, layout) in enumerate(zip(self.sizes, self.layouts, strict=True))
        ]

    @classmethod
    def from_rows(
        cls, rows: Sequence[Mapping[str, Any]], windows: WindowConfig, patches: int, crop_size: int
    ) -> "Proposals":
        """Put rows of `to_rows` together, whichever batches they come from.

        Args:
            rows: Of images whose windows have one size.
            windows: How the images were cut.
            patches: Patches of a window.
            crop_size: Side of a crop in pixels.
        """
        layouts = tuple(
            WindowLayout.of(height, width, windows) for height, width in (row["resized"] for row in rows)
        )
        sizes = tuple((int(height), int(width)) for height, width in (row["size"] for row in rows))
        if rows[0]["kept"] is None:
            values = np.frombuffer(b"".join(row["maps"] for row in rows), np.float32).copy()
            maps = torch.from_numpy(values.reshape(sum(map(len, layouts)), -1, patches))
            return cls(sizes, layouts, maps, bool(rows[0]["scored"]), region_maps=_region_maps(rows, sizes))
        most = max(1, *(len(row["kept"]) for row in rows))
        classes = np.full((len(rows), most), NOBODY, np.int64)
        purified = np.zeros((sum(map(len, layouts)), most, patches), np.float32)
        first = 0
        for names, row, layout in zip(classes, rows, layouts, strict=True):
            kept = len(row["kept"])
            names[:kept] = row["kept"]
            stored = np.frombuffer(row["maps"], np.uint16).reshape(len(layout), kept, patches)
            purified[first : first + len(layout), :kept] = stored
            first += len(layout)
        crops = np.frombuffer(b"".join(row["crops"] for row in rows), np.uint8)
        return cls(
            sizes,
            layouts,
            torch.from_numpy(purified).div_(MAP_LEVELS),
            decisions=Decisions(
                np.stack([np.frombuffer(row["scores"], np.float32) for row in rows]),
                classes,
                _regions_of_rows(rows),
            ),
            crops=torch.from_numpy(crops.reshape(-1, crop_size, crop_size, 3).copy()),
            region_maps=_region_maps(rows, sizes),
        )


def _region_maps(
    rows: Sequence[Mapping[str, Any]], sizes: Sequence[tuple[int, int]]
) -> tuple[RegionMap | None, ...] | None:
    stored = [row.get("region_map") for row in rows]
    if all(data is None for data in stored):
        return None
    return tuple(
        None if data is None else RegionMap.from_bytes(data, size)
        for data, size in zip(stored, sizes, strict=True)
    )


def _regions_of_rows(rows: Sequence[Mapping[str, Any]]) -> Regions:
    """Number the groups of all images through, and pad their members to the largest group."""
    groups = [members for row in rows for members in row["groups"]]
    members = np.full((len(groups), max((len(group) for group in groups), default=0)), NOBODY, np.int64)
    for names, group in zip(members, groups, strict=True):
        names[: len(group)] = group
    counts = [len(row["region_window"]) for row in rows]
    first = np.cumsum([0, *(len(row["groups"]) for row in rows[:-1])])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(row[name], np.int64) for row in rows])

    return Regions(
        image=np.repeat(np.arange(len(rows)), counts),
        window=joined("region_window"),
        group=joined("region_group") + np.repeat(first, counts),
        corners=joined("region_corners").reshape(-1, 4),
        members=members,
    )
