"""Which class of an ambiguous group owns a box, and what the others lose.

Released code: losers vanish from the whole window, and a degenerate box lets the whole group stay. Paper: losers vanish
inside the box. Image: the winner takes the box at the image's own resolution; as it gets the largest score of its group
there, that is a renaming of labels after they have been assigned, and no score map is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.class_maps import NOBODY, ClassMaps
from ovss_core.transfer import upload


@dataclass(frozen=True)
class AmbiguousRegions:
    """The boxes that several classes of an image claim, one row each, in CPU memory.

    Attributes:
        image: Image of the batch that each region lies in, non-decreasing.
        window: Window of that image, or -1 where images decide.
        group: Number of each region's group, counted through the batch, image by image.
        corners: x0, y0, x1, y1 in pixels of the window, or of the resized image; end exclusive.
        members: Class indices of each group, ascending; `NOBODY` behind the last.
    """

    image: Int[np.ndarray, " regions"]
    window: Int[np.ndarray, " regions"]
    group: Int[np.ndarray, " regions"]
    corners: Int[np.ndarray, "regions 4"]
    members: Int[np.ndarray, "groups most"]

    def __len__(self) -> int:
        return len(self.image)

    @cached_property
    def has_area(self) -> Bool[np.ndarray, " regions"]:
        """Which regions hold a pixel; the others have no winner."""
        x0, y0, x1, y1 = self.corners.T
        has_area: np.ndarray = (x0 < x1) & (y0 < y1)
        return has_area

    @cached_property
    def group_image(self) -> Int[np.ndarray, " groups"]:
        """The image of each group."""
        image = np.zeros(len(self.members), np.int64)
        image[self.group] = self.image
        return image

    @cached_property
    def group_window(self) -> Int[np.ndarray, " groups"]:
        """The window of each group, -1 where images decide."""
        window = np.zeros(len(self.members), np.int64)
        window[self.group] = self.window
        return window

    @classmethod
    def none(cls) -> "AmbiguousRegions":
        """Return no regions."""
        numbers = np.zeros(0, np.int64)
        return cls(numbers, numbers, numbers, np.zeros((0, 4), np.int64), np.zeros((0, 0), np.int64))

    @classmethod
    def of_tables(
        cls,
        used: Bool[np.ndarray, "units groups boxes"],
        boxes: Int[np.ndarray, "units groups boxes 4"],
        members: Int[np.ndarray, "units groups places"],
        by_window: bool,
        window_counts: Sequence[int],
    ) -> "AmbiguousRegions":
        """List the boxes of tables that have come from the device.

        Args:
            used, boxes, members: As in `AmbiguousGroups`.
            by_window: Whether the units are windows.
            window_counts: Windows of each image.
        """
        unit, number, box = used.nonzero()
        counts = np.array(window_counts)
        owner = np.repeat(np.arange(len(counts)), counts) if by_window else np.arange(len(counts))
        first = (counts.cumsum() - counts)[owner[unit]]
        window = unit - first if by_window else np.full(len(unit), -1)
        most = max(members.shape[1], 1)
        listed, group = np.unique(unit * most + number, return_inverse=True)
        rows = members[listed // most, listed % most]
        return cls(owner[unit], window, group, boxes[unit, number, box], _to_the_left(rows))

    def on_image(self, origins: Sequence[Sequence[tuple[int, int]]]) -> Int[np.ndarray, "regions 4"]:
        """Return the corners in pixels of the resized images.

        Args:
            origins: y, x of the windows of each image.
        """
        shift = [
            (0, 0) if window < 0 else origins[image][window]
            for image, window in zip(self.image.tolist(), self.window.tolist(), strict=True)
        ]
        corners: np.ndarray = self.corners + np.array(shift, np.int64).reshape(-1, 2)[:, [1, 0, 1, 0]]
        return corners

    def member_places(self, classes: Int[np.ndarray, "images places"]) -> Int[np.ndarray, "groups most"]:
        """Find the place of each member among its image's kept classes."""
        rows = classes[self.group_image]
        places: np.ndarray = (rows[:, None, :] == self.members[:, :, None]).argmax(2)
        return places


def _to_the_left(rows: np.ndarray) -> np.ndarray:
    """Move the members of each row to its beginning, and cut off the columns that nobody needs."""
    order = np.argsort(np.where(rows == NOBODY, np.iinfo(rows.dtype).max, rows), axis=1, kind="stable")
    most = int((rows != NOBODY).sum(1).max(initial=0))
    return np.take_along_axis(rows, order, 1)[:, :most]


def pick_winners(
    crop_features: Float[Tensor, "crops channels"],
    description_embeddings: Float[Tensor, "classes channels"],
    candidates: Int[Tensor, "crops most"],
) -> Int[Tensor, " crops"]:
    """Choose for each crop the candidate class whose description is nearest to it.

    Args:
        crop_features: L2-normalized class-token features of the plain encoder.
        description_embeddings: L2-normalized, one a class.
        candidates: Class indices to choose from, `NOBODY` behind the last; the first of equals wins.

    Returns:
        The position of the winner among each crop's candidates.
    """
    similarity = crop_features.float() @ description_embeddings.float().mT
    offered = similarity.gather(1, candidates.clamp_min(0)).masked_fill(candidates < 0, -torch.inf)
    return offered.argmax(1)


def remove_losers(
    kept: ClassMaps,
    regions: AmbiguousRegions,
    winners: Int[Tensor, " areas"],
    classes: Int[np.ndarray, "images places"],
    patch_size: int,
    grid: tuple[int, int],
    whole_window: bool,
) -> ClassMaps:
    """Zero the maps of the classes that lost in a window (variants in which windows decide).

    Args:
        kept: Maps of the kept classes of each image.
        regions: Of windows.
        winners: Position of the winner among its group's members, one for each region that has an area.
        classes: `kept.classes`, in CPU memory.
        patch_size: Side of a patch in pixels.
        grid: Patch rows and columns of a window.
        whole_window: "released": losers vanish from the whole window, unless a box of their group is degenerate.
            Otherwise ("paper") they vanish inside the box.
    """
    if not regions.has_area.any():
        return kept
    counts = np.array(kept.units.counts)
    first = counts.cumsum() - counts
    tables = {
        "group": regions.group[regions.has_area],
        "there": regions.members != NOBODY,
        "row": first[regions.group_image] + regions.group_window,
        "place": regions.member_places(classes),
    }
    if whole_window:
        tables["decided"] = np.ones(len(regions.members), bool)
        tables["decided"][regions.group[~regions.has_area]] = False
    else:
        tables["inside"] = _patches_inside(regions.corners[regions.has_area], patch_size, grid)
    sent = upload(tables, kept.maps.device)
    group, there, row, place = (sent[name] for name in ("group", "there", "row", "place"))
    won = winners[:, None] == torch.arange(there.shape[1], device=winners.device)
    lost = torch.zeros(kept.maps.shape, dtype=torch.bool, device=kept.maps.device)
    if whole_window:
        ever = torch.zeros_like(there).index_put_((group,), won, accumulate=True)
        loses = there & ~ever & sent["decided"][:, None]
        lost.index_put_((row[:, None].expand_as(place), place), loses[:, :, None], accumulate=True)
    else:
        loses = there[group] & ~won
        values = loses[:, :, None] & sent["inside"][:, None, :]
        lost.index_put_((row[group][:, None].expand_as(loses), place[group]), values, accumulate=True)
    return kept.with_maps(kept.maps.masked_fill(lost, 0))


def _patches_inside(corners: np.ndarray, patch_size: int, grid: tuple[int, int]) -> np.ndarray:
    """Mark the patches of boxes that lie on patch borders: bool [boxes, patches]."""
    x0, y0, x1, y1 = (corners // patch_size).T[..., None]
    y, x = np.arange(grid[0]), np.arange(grid[1])
    rows, columns = (y >= y0) & (y < y1), (x >= x0) & (x < x1)
    inside: np.ndarray = (rows[:, :, None] & columns[:, None, :]).reshape(len(corners), -1)
    return inside


@dataclass(frozen=True)
class LabelEdits:
    """Boxes inside which the members of a group are renamed to its winner, largest box first.

    Attributes:
        bounds: x0, y0, x1, y1 in pixels of the image, end exclusive, in CPU memory; empty where an image has fewer edits.
        boxes: The same on the device.
        places: What each place of the image becomes inside the box.
        counts: Edits of each image; those behind its last do nothing.
    """

    bounds: Int[np.ndarray, "edits images 4"]
    boxes: Int[Tensor, "edits images 4"]
    places: Int[Tensor, "edits images places"]
    counts: Int[Tensor, " images"]

    @classmethod
    def of_regions(
        cls,
        regions: AmbiguousRegions,
        winners: Int[Tensor, " areas"],
        classes: Int[np.ndarray, "images places"],
        scales: Sequence[tuple[float, float]],
    ) -> "LabelEdits":
        """Turn decided regions of images into edits at the images' own sizes.

        Args:
            regions: Of images.
            winners: Position of the winner among its group's members, one for each region that has an area.
            classes: Classes of the places of each image.
            scales: y and x factors from each resized image to the image.
        """
        areas = np.flatnonzero(regions.has_area)
        x0, y0, x1, y1 = regions.corners[areas].T
        image = regions.image[areas]
        # image by image, the largest box first: a box inside another of its group is decided after it
        order = np.lexsort((-(x1 - x0) * (y1 - y0), image))
        count = np.bincount(image, minlength=len(classes))
        chosen, image = areas[order], image[order]
        edit = np.arange(len(order)) - (count.cumsum() - count)[image]
        boxes = np.zeros((int(count.max(initial=0)), len(classes), 4), np.int64)
        boxes[edit, image] = scale_boxes(regions.corners[chosen], np.array(scales)[image])
        members = regions.members[regions.group[chosen]]
        is_member = (classes[image][:, None, :] == members[:, :, None]) & (members != NOBODY)[:, :, None]
        tables = upload(
            {
                "boxes": boxes,
                "counts": count,
                "order": order,
                "row": edit * len(classes) + image,
                "member_place": is_member.argmax(2),
                "is_member": is_member.any(1),
                "places": np.tile(np.arange(classes.shape[1]), (boxes.shape[0] * len(classes), 1)),
            },
            winners.device,
        )
        winner_place = tables["member_place"].gather(1, winners[tables["order"]][:, None])
        own = tables["places"][tables["row"]]
        renamed = torch.where(tables["is_member"], winner_place, own)
        places = (
            tables["places"].index_copy(0, tables["row"], renamed).view(*boxes.shape[:2], classes.shape[1])
        )
        return cls(boxes, tables["boxes"], places, tables["counts"])

    @cached_property
    def members(self) -> Bool[Tensor, "edits images places"]:
        """Which places an edit renames, and those that they become."""
        moved = self.places != torch.arange(self.places.shape[2], device=self.places.device)
        becomes = torch.zeros_like(self.places).scatter_add_(2, self.places, moved.long())
        return moved | (becomes > 0)

    def of_images(self, part: slice) -> "LabelEdits":
        """Return the edits of some neighboring images."""
        return LabelEdits(self.bounds[:, part], self.boxes[:, part], self.places[:, part], self.counts[part])


def scale_boxes(
    corners: Int[np.ndarray, "boxes 4"], scales: Float[np.ndarray, "boxes 2"]
) -> Int[np.ndarray, "boxes 4"]:
    """Carry boxes from resized images to images; y and x factors, edges rounded to the nearest even pixel border."""
    factors = scales[:, [1, 0, 1, 0]]
    scaled: np.ndarray = np.rint(corners * factors).astype(np.int64)
    return scaled
