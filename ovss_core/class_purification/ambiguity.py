"""Which kept classes claim the same region, and the boxes in which one of them has to win.

Classes whose refined maps overlap (soft IoU) are joined; each connected group of two or more gets the
boxes of its mean map. The group's region is then shown to the plain encoder (`winners`). With one decision
an image, the mean map is first laid over the image's own patch lattice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.batch import Units
from ovss_core.class_purification.boxes import Boxes, component_boxes, quantise, threshold_regions

Box = tuple[int, int, int, int]
DEGENERATE_BOX: Box = (0, 0, 0, 0)


@dataclass(frozen=True)
class KeptMaps:
    """The refined maps of the kept classes of each unit, padded to the largest unit.

    Attributes:
        classes: Class index of each place, ascending; -1 where a unit keeps fewer classes.
        maps: q of each class in each window of the unit; 0 in the padding.
    """

    classes: Int[Tensor, "units kept"]
    maps: Float[Tensor, "units kept slots patches"]


def pad_kept(
    unit: Int[Tensor, " rows"],
    window: Int[Tensor, " rows"],
    class_index: Int[Tensor, " rows"],
    maps: Float[Tensor, "rows patches"],
    units: Units,
) -> KeptMaps:
    """Arrange rows of kept maps by unit, class and window."""
    span = int(class_index.max()) + 1
    keys, pair = torch.unique(unit * span + class_index, return_inverse=True)
    pair_unit = keys // span
    counts = torch.bincount(pair_unit, minlength=units.count)
    place = torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[pair_unit]
    size, slots = torch.stack([counts.max(), units.sizes.max()]).tolist()
    classes = keys.new_full((units.count, size), -1)
    classes[pair_unit, place] = keys % span
    padded = maps.new_zeros((units.count, size, slots, maps.shape[1]))
    padded[unit, place[pair], window - units.first[unit]] = maps
    return KeptMaps(classes, padded)


def soft_iou(maps: Float[Tensor, "units kept values"]) -> Float[Tensor, "units kept kept"]:
    """Measure how far every two maps of a unit coincide: sum of minima / sum of maxima.

    Both follow from the sums and the L1 distance, as min = (a + b - |a - b|) / 2, so no [kept, kept, values]
    is formed. Two empty maps give 0.
    """
    sums = maps.sum(2)
    both = sums[:, :, None] + sums[:, None, :]
    distance = torch.cdist(maps, maps, p=1)
    largest = (both + distance) / 2
    return torch.where(largest > 0, (both - distance) / 2 / largest.clamp_min(1e-30), 0).clamp_min(0)


def connected_groups(edges: Bool[Tensor, "units nodes nodes"]) -> Int[Tensor, "units nodes"]:
    """Name each node's connected component (single linkage) after its first node.

    Args:
        edges: Symmetric; the diagonal does not matter.
    """
    nodes = edges.shape[1]
    own = torch.arange(nodes, device=edges.device).expand(edges.shape[:2])
    linked = edges | torch.eye(nodes, dtype=torch.bool, device=edges.device)
    labels = own
    while True:
        reached = torch.where(linked, labels[:, None, :], nodes).amin(2)
        jumped = reached.gather(1, reached)
        if torch.equal(jumped, labels):
            return labels
        labels = jumped


@dataclass(frozen=True)
class AmbiguousGroups:
    """Groups of two or more classes of all units.

    Attributes:
        unit: Unit of each group.
        members: Class indices of each group, ascending.
        maps: Mean map of each group in each window of its unit, float64.
    """

    unit: Int[Tensor, " groups"]
    members: tuple[tuple[int, ...], ...]
    maps: Float[Tensor, "groups slots patches"]


def find_groups(kept: KeptMaps, threshold: float, excluded: int | None = None) -> AmbiguousGroups:
    """Group the kept classes of each unit whose maps' soft IoU reaches the threshold.

    Args:
        kept: Kept maps.
        threshold: Edges join classes with soft IoU >= threshold.
        excluded: A class that is never ambiguous (a background class that competes as a class).
    """
    units, size, slots, patches = kept.maps.shape
    eligible = kept.classes >= 0
    if excluded is not None:
        eligible &= kept.classes != excluded
    edges = soft_iou(kept.maps.flatten(2)) >= threshold
    labels = connected_groups(edges & eligible[:, :, None] & eligible[:, None, :])
    counts = torch.zeros_like(labels).scatter_add_(1, labels, torch.ones_like(labels))
    unit, root = (counts >= 2).nonzero(as_tuple=True)
    number = labels.new_full((units, size), -1)
    number[unit, root] = torch.arange(len(unit), device=unit.device)
    number = number.gather(1, labels)
    member_unit, place = (number >= 0).nonzero(as_tuple=True)
    group = number[member_unit, place]
    sums = kept.maps.new_zeros((len(unit), slots, patches), dtype=torch.float64)
    sums.index_add_(0, group, kept.maps[member_unit, place].double())
    members: list[list[int]] = [[] for _ in range(len(unit))]
    for number_, class_index in zip(group.tolist(), kept.classes[member_unit, place].tolist(), strict=True):
        members[number_].append(class_index)
    return AmbiguousGroups(unit, tuple(map(tuple, members)), sums / counts[unit, root][:, None, None])


def _overlaps(origin: Tensor, extent: int, patches: int, cells: int, cell: int) -> Tensor:
    """Measure, along one axis, how much of each lattice cell each patch covers: [windows, cells, patches]."""
    size = extent / patches
    start = origin[:, None, None] + size * torch.arange(patches, device=origin.device, dtype=torch.float64)
    edge = cell * torch.arange(cells, device=origin.device, dtype=torch.float64)[:, None]
    return (torch.minimum(start + size, edge + cell) - torch.maximum(start, edge)).clamp_min(0)


def lay_on_lattice(
    groups: AmbiguousGroups,
    units: Units,
    window_origin: Int[Tensor, "windows 2"],
    window_size: tuple[int, int],
    grid: tuple[int, int],
    image_size: tuple[int, int],
    patch_size: int,
) -> Float[Tensor, "groups height width"]:
    """Average the windows' mean maps on the image's patch lattice, weighted by the area they cover.

    Args:
        groups: Groups whose units are images.
        units: Images.
        window_origin: y, x of each window in its resized image, pixels.
        window_size: Height and width of a window, pixels.
        grid: Patch rows and columns of a window.
        image_size: Largest height and width of the images, pixels; smaller images fill the first cells.
        patch_size: Side of a patch and of a lattice cell, pixels.
    """
    cells = [-(-side // patch_size) for side in image_size]
    filled = torch.arange(groups.maps.shape[1], device=groups.unit.device) < units.sizes[groups.unit][:, None]
    group, slot = filled.nonzero(as_tuple=True)
    window = units.first[groups.unit[group]] + slot
    rows, columns = (
        _overlaps(window_origin[window, axis], window_size[axis], grid[axis], cells[axis], patch_size)
        for axis in (0, 1)
    )
    laid = rows @ groups.maps[group, slot].view(-1, *grid) @ columns.mT
    weight = rows.sum(2)[:, :, None] * columns.sum(2)[:, None, :]
    shape = (len(groups.unit), *cells)
    total = laid.new_zeros(shape).index_add_(0, group, laid)
    return total / laid.new_zeros(shape).index_add_(0, group, weight).clamp_min(1e-12)


def group_boxes(
    maps: Float[Tensor, "groups height width"], box_threshold: float, exclude_last: bool, holes: bool
) -> list[tuple[Box, ...]]:
    """Bound the regions of each group's mean map, in patches; repeated boxes are given once.

    Args:
        maps: Mean maps in [0, 1].
        box_threshold: Share of the map's peak above which a patch belongs to a region.
        exclude_last: See `component_boxes`.
        holes: See `component_boxes`.

    Returns:
        The boxes of each group; one degenerate box for an empty map.
    """
    levels = quantise(maps)
    regions = threshold_regions(levels, levels.flatten(1).amax(1), box_threshold)
    return _list_boxes(component_boxes(regions, exclude_last, holes), len(maps))


def _list_boxes(boxes: Boxes, maps: int) -> list[tuple[Box, ...]]:
    found: list[dict[Box, None]] = [{} for _ in range(maps)]
    corners: Sequence[Sequence[int]] = boxes.corners.tolist()
    for index, (x0, y0, x1, y1) in zip(boxes.map_index.tolist(), corners, strict=True):
        found[index][(x0, y0, x1, y1)] = None
    return [tuple(entry) or (DEGENERATE_BOX,) for entry in found]
