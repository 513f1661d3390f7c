"""What stage 1 hands to stage 2 about a batch of images, and its form as Arrow rows where a process ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ovss_core.class_purification.class_maps import NOBODY
from ovss_core.class_purification.winners import AmbiguousRegions
from ovss_core.config import WindowConfig
from ovss_core.engine.facts import FACT_COLUMNS, facts_from_columns, facts_to_columns
from ovss_core.images.windows import WindowLayout
from ovss_core.regions import RegionMap
from ovss_core.transfer import Download, beside, upload

MAP_LEVELS = 65_535
"""Purified maps lie in [0, 1] and are held to 16 bits, on both roads: one image gets one mask whether or not its
proposal crosses from one process to another."""


COLUMNS: dict[str, type[np.generic]] = {
    "size": np.int32,
    "resized": np.int32,
    "scored": np.uint8,
    "maps": np.uint8,
    "guide": np.uint8,
    "kept": np.int32,
    "phrases": np.int32,
    "scores": np.float32,
    "group_sizes": np.int32,
    "members": np.int32,
    "region_group": np.int32,
    "region_window": np.int32,
    "region_corners": np.int32,
    "crops": np.uint8,
    "region_map": np.uint8,
    **FACT_COLUMNS,
}
"""What a row holds, and of which numbers its bytes are. Maps are the bytes of uint16 levels, or, where labels come from the
head's own scores, of float32: of `phrases` in purification's form "filter", of all without purification, where what follows the
guide, but the region map and the facts, is empty. The guide is there only where a refiner or
CaR wants it, a region map where regions vote."""


@dataclass(frozen=True)
class Decisions:
    """What purification decided for a batch of images, in CPU memory.

    Attributes:
        scores: Redundancy score of every class, nan for the background class.
        classes: Classes that each image keeps, ascending; `NOBODY` behind the last.
        regions: Boxes that several classes claim.
    """

    scores: Float[np.ndarray, "images classes"]
    classes: Int[np.ndarray, "images places"]
    regions: AmbiguousRegions


@dataclass(frozen=True)
class Proposals:
    """Everything that stage 2 needs to label the images of one batch, whose windows all have one size.

    Attributes:
        sizes: Height and width of each image.
        layouts: Where its windows lie in the resized image.
        maps: A map for each window and kept class (purified), phrase (cosines), or feature dimension. The windows
            lie image after image.
        phrases: Where labels come from the head's own scores of the kept words: the phrase of each map of an image,
            ascending, `NOBODY` behind the last.
        scored: Without purification: whether the maps are cosines; features are smaller where a vocabulary has more
            phrases than they have dimensions.
        sound: Whether the features of each image's windows are numbers; the rest means nothing where they are not.
        decisions: With purification.
        crops: Pixels of the regions that have an area, in their order, RGB.
        guides: The resized images, RGB, where a refiner or CaR follows.
        facts: What else stage 1 knows of each image, by name (`ovss_core.engine.facts`).
        region_maps: Each image's region map, where regions are to vote.
    """

    sizes: tuple[tuple[int, int], ...]
    layouts: tuple[WindowLayout, ...]
    maps: Float[Tensor, "windows maps patches"]
    scored: bool = True
    sound: Bool[np.ndarray, " images"] | None = None
    decisions: Decisions | None = None
    crops: UInt8[Tensor, "areas side side 3"] | None = None
    guides: tuple[UInt8[Tensor, "_height _width 3"], ...] | None = None
    facts: Mapping[str, np.ndarray] = field(default_factory=dict)
    region_maps: tuple[RegionMap | None, ...] | None = None
    phrases: Int[np.ndarray, "images places"] | None = None

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

    def without_maps(self) -> "Proposals":
        """Return the same without what lies on the device."""
        return replace(self, maps=torch.empty(0, 0, 0), crops=None, guides=None)

    def to_rows(self) -> list[dict[str, memoryview]]:
        """Return one row of `COLUMNS` an image, for `from_rows`; nothing is copied once it is in CPU memory.

        Only the places that an image uses are fetched from the device; work that is queued there is not waited for.
        """
        pieces: dict[str, Sequence[np.ndarray]] = dict.fromkeys(COLUMNS, [np.empty(0)] * len(self))
        pieces["size"] = list(np.array(self.sizes))
        pieces["resized"] = list(np.array([layout.image_size for layout in self.layouts]))
        if self.guides is not None:
            with beside(self.maps.device):
                pieces["guide"] = Download(self.guides).wait()
        pieces |= facts_to_columns(self.facts)
        if self.region_maps is not None:
            pieces["region_map"] = [
                np.frombuffer(b"" if regions is None else regions.to_bytes(), np.uint8)
                for regions in self.region_maps
            ]
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
        columns = classes if self.phrases is None else self.phrases
        used = (columns != NOBODY).repeat(self.window_counts, 0)
        with beside(self.maps.device):
            taken_maps = _used(self.maps, used)
            levels, pixels = Download(
                [_levels(taken_maps) if self.phrases is None else taken_maps, crops]
            ).wait()
        rows = np.cumsum(used.sum(1))[np.cumsum(self.window_counts) - 1]
        others = np.arange(1, len(self))
        region, group = regions.image.searchsorted(others), regions.group_image.searchsorted(others)
        areas = np.concatenate([[0], np.cumsum(regions.has_area)])[region]
        taken = regions.members != NOBODY
        ends = np.concatenate([[0], np.cumsum(taken.sum(1))])[group]
        return {
            "kept": [row[row != NOBODY] for row in classes],
            "phrases": [row[row != NOBODY] for row in columns]
            if self.phrases is not None
            else [np.empty(0)] * len(self),
            "maps": np.split(levels.view(np.uint8), rows[:-1]),
            "scores": list(decisions.scores),
            "group_sizes": np.split(taken.sum(1), group),
            "members": np.split(regions.members[taken], ends),
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
        guides, facts = _guides_of_rows(found["guide"], layouts), facts_from_columns(found)
        if not len(found["scores"][0]):
            maps = np.concatenate(found["maps"]).view(np.float32).reshape(sum(map(len, layouts)), -1, patches)
            scored, regions = bool(found["scored"][0][0]), _region_maps(found["region_map"], sizes)
            scores = torch.from_numpy(maps)
            return cls(sizes, layouts, scores, scored, guides=guides, facts=facts, region_maps=regions)
        classes, own = _side_by_side(found["kept"]), len(found["phrases"][0]) > 0
        columns = _side_by_side(found["phrases"]) if own else classes
        maps = np.zeros((sum(map(len, layouts)), columns.shape[1], patches), np.float32)
        first = 0
        for count, stored, layout in zip((columns != NOBODY).sum(1), found["maps"], layouts, strict=True):
            last = first + len(layout)
            values = stored.view(np.float32 if own else np.uint16)
            maps[first:last, :count] = values.reshape(last - first, count, patches)
            first = last
        crops = np.concatenate(found["crops"]).reshape(-1, crop_size, crop_size, 3)
        return cls(
            sizes,
            layouts,
            torch.from_numpy(maps) if own else torch.from_numpy(maps).div_(MAP_LEVELS),
            decisions=Decisions(np.stack(found["scores"]), classes, _regions_of_rows(found)),
            crops=torch.from_numpy(crops),
            guides=guides,
            facts=facts,
            region_maps=_region_maps(found["region_map"], sizes),
            phrases=columns if own else None,
        )


def _side_by_side(rows: Sequence[np.ndarray]) -> Int[np.ndarray, "images places"]:
    """Lay rows of different lengths side by side, one place at least; `NOBODY` behind the last."""
    table = np.full((len(rows), max(1, *map(len, rows))), NOBODY, np.int64)
    for places, row in zip(table, rows, strict=True):
        places[: len(row)] = row
    return table


def _guides_of_rows(
    pictures: Sequence[np.ndarray], layouts: Sequence[WindowLayout]
) -> tuple[UInt8[Tensor, "_height _width 3"], ...] | None:
    if not len(pictures[0]):
        return None
    return tuple(
        torch.from_numpy(picture.reshape(*layout.image_size, 3).copy())
        for picture, layout in zip(pictures, layouts, strict=True)
    )


def size_in(row: Mapping[str, Any], name: Literal["size", "resized"]) -> tuple[int, int]:
    """Read height and width of the image, or of the resized image, in a row of `Proposals.to_rows`."""
    height, width = np.frombuffer(row[name], COLUMNS[name]).tolist()
    return height, width


def _region_maps(
    stored: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
) -> tuple[RegionMap | None, ...] | None:
    if not any(map(len, stored)):
        return None
    return tuple(
        RegionMap.from_bytes(data.tobytes(), size) if len(data) else None
        for data, size in zip(stored, sizes, strict=True)
    )


def _used(
    maps: Float[Tensor, "windows places patches"], used: Bool[np.ndarray, "windows places"]
) -> Float[Tensor, "rows patches"]:
    """Return the maps of the places that are used, window by window."""
    rows = upload({"rows": np.flatnonzero(used)}, maps.device)["rows"]
    return maps.reshape(-1, maps.shape[2]).index_select(0, rows)


def _levels(maps: Float[Tensor, "rows patches"]) -> Tensor:
    """Return maps in `MAP_LEVELS` as the bits of uint16."""
    return (maps * MAP_LEVELS).round().to(torch.int32).to(torch.int16)


def _regions_of_rows(found: Mapping[str, Sequence[np.ndarray]]) -> AmbiguousRegions:
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
    return AmbiguousRegions(
        image=np.repeat(np.arange(len(counts)), counts),
        window=window,
        group=group + np.repeat(first, counts),
        corners=corners.reshape(-1, 4),
        members=members,
    )
