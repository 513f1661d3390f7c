"""Which kept classes claim the same region, and the boxes in which one of them has to win.

Classes whose refined maps overlap (soft IoU) are joined; each connected group of two or more gets the boxes of its mean
map. The group's regions are then shown to the plain encoder (`winners`). With one decision an image, the mean map is
first laid over the image's own patch lattice.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.class_maps import NOBODY, ClassMaps, first_places
from ovss_core.class_purification.placement import Placement, Units
from ovss_core.class_purification.regions import (
    Boxes,
    bound_parts,
    quantize,
    threshold_levels,
    threshold_regions,
)
from ovss_core.class_purification.room import Room
from ovss_core.config import PurificationConfig
from ovss_core.kernels import use_kernel

MOST_PLACES = 64
"""Classes of an image that a program compares all with all."""


@dataclass(frozen=True)
class AmbiguousGroups:
    """Groups of two or more classes of every unit.

    Attributes:
        units: Images or windows, whichever decide.
        by_window: Whether windows do.
        members: Class index of each member, ascending; `NOBODY` in places of classes that are not of the group.
        boxes: Boxes of each group in pixels: of the unit's window, or of the resized image where images decide;
            end exclusive. Degenerate boxes (x0 >= x1 or y0 >= y1) have no winner. An empty map has one.
        used: Which boxes there are.
        complete: Whether every group and box has its place.
    """

    units: Units
    by_window: bool
    members: Int[Tensor, "units groups places"]
    boxes: Int[Tensor, "units groups boxes 4"]
    used: Bool[Tensor, "units groups boxes"]
    complete: Bool[Tensor, ""]

    @classmethod
    def none(cls, kept: ClassMaps, by_window: bool) -> "AmbiguousGroups":
        """Return no group for every unit of `kept`."""
        units, places = kept.classes.shape
        corners = kept.classes.new_zeros(units, 0, 0, 4)
        return cls(
            kept.units,
            by_window,
            kept.classes.new_zeros(units, 0, places),
            corners,
            corners[..., 0].bool(),
            kept.used.new_ones(()),
        )


@dataclass(frozen=True)
class RegionTable:
    """The boxes with an area of all groups, in the order of units, groups and boxes, where the groups are.

    Attributes:
        image: Image of each box; image 0 in unused rows.
        corners: x0, y0, x1, y1 in pixels of the resized image; one pixel in unused rows.
        complete: Whether every box has a row.
        needed: Boxes that there are.
    """

    image: Int[Tensor, " regions"]
    corners: Int[Tensor, "regions 4"]
    complete: Bool[Tensor, ""]
    needed: Int[Tensor, ""]


def list_regions(groups: AmbiguousGroups, placement: Placement, capacity: int | None = None) -> RegionTable:
    """List the boxes that can be shown to the encoder.

    Args:
        groups: Of the same windows.
        placement: Where they lie.
        capacity: Rows of the table; None counts.
    """
    if capacity is not None and not groups.by_window and use_kernel(groups.boxes):
        from ovss_core.kernels.groups_triton import launch_list

        return RegionTable(*launch_list(groups.boxes, groups.used, capacity))
    x0, y0, x1, y1 = groups.boxes.unbind(-1)
    wanted = (groups.used & (x0 < x1) & (y0 < y1)).flatten()
    row = first_places(wanted[None], capacity)[0]
    there = row < len(wanted)
    chosen = row.clamp_max(max(len(wanted) - 1, 0))
    unit = chosen // max(wanted.numel() // max(len(groups.units), 1), 1)
    corners = groups.boxes.flatten(0, 2)[chosen]
    image = unit
    if groups.by_window:
        image, corners = placement.images.index[unit], corners + placement.origins[unit]
    pixel = torch.arange(4, device=corners.device) // 2  # 0, 0, 1, 1
    corners = torch.where(there[:, None], corners, pixel)
    needed = wanted.sum()
    return RegionTable(torch.where(there, image, 0), corners, needed <= len(row), needed)


def find_ambiguous(
    placement: Placement,
    kept: ClassMaps,
    config: PurificationConfig,
    threshold: float,
    excluded: int | None = None,
    room: Room | None = None,
) -> AmbiguousGroups:
    """Find the ambiguous groups of each unit and the boxes to decide them in.

    Boxes of windows follow the released code: the last row and column of the grid are not part of them, and in the
    "released" variant the rims of holes are boxes too. Boxes of images reach to the image's edge.

    Args:
        placement: Where the windows lie.
        kept: Refined maps of the kept classes.
        config: Variant, and the share that bounds a region.
        threshold: Soft IoU from which on two classes are ambiguous.
        excluded: A class that is never ambiguous (a background class that competes as a class).
        room: None counts, and makes as many places as are needed.
    """
    if room is not None and config.by_image and use_kernel(kept.maps) and kept.places <= MOST_PLACES:
        return _find_on_device(placement, kept, config, threshold, -1 if excluded is None else excluded, room)
    edges = soft_iou(kept.by_unit().flatten(2)) >= threshold
    eligible = kept.used if excluded is None else kept.used & (kept.classes != excluded)
    parts = connected_parts(edges & eligible[:, :, None] & eligible[:, None, :])
    members, complete = group_members(parts, eligible, room.groups if room else None)
    maps = _mean_maps(kept, members)
    by_window = not config.by_image
    maps = maps.unflatten(2, placement.grid)
    if not by_window:
        maps = _lay_on_lattice(placement, maps)
    boxes = bound_groups(maps, config, room.boxes if room else None)
    corners, used = (table.unflatten(0, members.shape[:2]) for table in (boxes.corners, boxes.used))
    corners = corners * placement.patch_size
    limits = placement.window_limits if by_window else placement.image_limits
    corners = torch.cat([corners[..., :2], torch.minimum(corners[..., 2:], limits[:, None, None])], -1)
    used = used & members.any(2)[:, :, None]
    classes = torch.where(members, kept.classes[:, None, :], NOBODY)
    return AmbiguousGroups(kept.units, by_window, classes, corners, used, complete & boxes.complete)


def _find_on_device(
    placement: Placement,
    kept: ClassMaps,
    config: PurificationConfig,
    threshold: float,
    excluded: int,
    room: Room,
) -> AmbiguousGroups:
    """Do as `find_ambiguous` for images, in few launches."""
    from ovss_core.kernels.groups_triton import launch_boxes, launch_groups

    maps = kept.by_unit().flatten(2)
    members, weights, have_rows = launch_groups(
        torch.cdist(maps, maps, p=1), maps.sum(2), kept.classes, room.groups, threshold, excluded
    )
    mean = torch.bmm(weights[kept.units.index], kept.maps.double()).unflatten(2, placement.grid)
    boxes, used, have_boxes = launch_boxes(
        _lay_on_lattice(placement, mean),
        members,
        placement.image_limits,
        threshold_levels(config.box_threshold, mean.device),
        room.boxes,
        placement.patch_size,
    )
    complete = torch.cat([have_rows, have_boxes]).all()
    return AmbiguousGroups(kept.units, False, members, boxes, used, complete)


def soft_iou(maps: Float[Tensor, "units places values"]) -> Float[Tensor, "units places places"]:
    """Measure how far every two maps of a unit coincide: sum of minima / sum of maxima.

    Both follow from the sums and the L1 distance, as min = (a + b - |a - b|) / 2, so no [places, places, values] is
    formed. Two empty maps give 0.
    """
    return iou_of(maps.sum(2), torch.cdist(maps, maps, p=1))


def iou_of(
    sums: Float[Tensor, "units places"], distance: Float[Tensor, "units places places"]
) -> Float[Tensor, "units places places"]:
    """Find `soft_iou` by the sums of maps and their L1 distances."""
    both = sums[:, :, None] + sums[:, None, :]
    largest = (both + distance) / 2
    return torch.where(largest > 0, (both - distance) / 2 / largest.clamp_min(1e-30), 0).clamp_min(0)


def connected_parts(edges: Bool[Tensor, "units nodes nodes"]) -> Int[Tensor, "units nodes"]:
    """Name each node's connected component (single linkage) after its first node.

    Reachability is squared until paths of any length are covered, which takes a number of rounds that is known.

    Args:
        edges: Symmetric; the diagonal does not matter.
    """
    nodes = edges.shape[1]
    reach = (edges | torch.eye(nodes, dtype=torch.bool, device=edges.device)).float()
    for _ in range((nodes - 1).bit_length()):
        reach = torch.bmm(reach, reach).clamp_(max=1)
    every = torch.arange(nodes, device=edges.device)
    return torch.where(reach > 0, every, nodes).amin(2)


def group_members(parts: Tensor, eligible: Tensor, capacity: int | None) -> tuple[Tensor, Tensor]:
    """Number the components of two or more nodes by their first node, and say whether all have a number."""
    nodes = parts.shape[1]
    every = torch.arange(nodes, device=parts.device)
    same = (parts[:, None, :] == every[:, None]) & eligible[:, None, :]
    is_group = same.sum(2) >= 2
    root = first_places(is_group, capacity)
    members = (parts[:, None, :] == root[:, :, None]) & eligible[:, None, :] & (root < nodes)[:, :, None]
    return members, (is_group.sum(1) <= root.shape[1]).all()


def _mean_maps(kept: ClassMaps, members: Tensor) -> Float[Tensor, "windows groups patches"]:
    """Average the maps of each group's members, in float64: levels are cut off at whole numbers afterwards."""
    weights = members.double() / members.sum(2, keepdim=True).clamp_min(1)
    return torch.bmm(weights[kept.units.index], kept.maps.double())


def _lay_on_lattice(
    placement: Placement, maps: Float[Tensor, "windows groups patch_rows patch_columns"]
) -> Float[Tensor, "images groups height width"]:
    """Average the windows' maps on each image's patch lattice, weighted by the area that they cover."""
    rows, columns = placement.cell_rows, placement.cell_columns
    laid = rows[:, None] @ maps @ columns[:, None].mT
    weight = rows.sum(2)[:, :, None] * columns.sum(2)[:, None, :]
    total, covered = (placement.images.reduce(values, "sum") for values in (laid, weight))
    return total / covered[:, None].clamp_min(1e-12)


def bound_groups(
    maps: Float[Tensor, "units groups height width"], config: PurificationConfig, capacity: int | None
) -> Boxes:
    """Bound the regions of each group's mean map, in patches; a group with an empty map has one degenerate box."""
    levels = quantize(maps).flatten(0, 1).flatten(1)
    regions = threshold_regions(levels, levels.amax(1), config.box_threshold)
    boxes = bound_parts(
        regions.unflatten(1, maps.shape[2:]),
        exclude_last=not config.by_image,
        holes=config.variant == "released",
        capacity=capacity,
    ).without_repetitions()
    if not boxes.used.shape[1]:
        boxes = Boxes(
            boxes.corners.new_zeros(len(levels), 1, 4), boxes.used.new_zeros(len(levels), 1), boxes.complete
        )
    empty = ~boxes.used.any(1)
    used = boxes.used.clone()
    used[:, 0] |= empty
    return Boxes(boxes.corners * ~empty[:, None, None], used, boxes.complete)
