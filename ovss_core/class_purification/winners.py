"""Which class of an ambiguous group owns a box, and what the others lose.

Released code: losers vanish from the whole window, and a degenerate box lets the whole group stay. Paper:
losers vanish inside the box. Image: the winner takes the box at the image's own resolution.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovss_core.class_purification.ambiguity import Box
from ovss_core.config import PurificationVariant


@dataclass(frozen=True)
class GroupProposal:
    """Classes that claim the same region, and the boxes to decide it in.

    Attributes:
        classes: Class indices of the vocabulary, at least two, ascending.
        window: Window of the image (variants that decide once a window), or None.
        boxes: x0, y0, x1, y1 in pixels, end exclusive: of the window, or of the resized image when `window`
            is None. Degenerate boxes (x0 >= x1 or y0 >= y1) have no winner.
    """

    classes: tuple[int, ...]
    window: int | None
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class ImagePurification:
    """What purification decided about one image.

    Attributes:
        scores: Redundancy score of each class (largest over the windows when windows decide); for a class
            too improbable to be kept whatever its map looks like, the bound m / (1 + m) that its score cannot
            exceed, m its peak probability; nan for background.
        kept: Indices of the kept classes, ascending; a background class only if it competes as a class.
        maps: Refined maps q of the kept classes in each window; 0 where a window removed the class.
        groups: Ambiguous groups, for `resolve_groups`.
    """

    scores: Float[Tensor, " classes"]
    kept: Int[Tensor, " kept"]
    maps: Float[Tensor, "kept windows rows columns"]
    groups: tuple[GroupProposal, ...]


@dataclass(frozen=True)
class BoxEdit:
    """One decided box of an image.

    Attributes:
        box: x0, y0, x1, y1 in pixels, end exclusive.
        winner: Position in `kept` of the class that takes the box.
        members: Positions of the whole group, winner included.
    """

    box: Box
    winner: int
    members: tuple[int, ...]

    def scaled(self, source: tuple[int, int], target: tuple[int, int]) -> "BoxEdit":
        """Return the edit for an image resized from `source` to `target` (height, width), edges rounded."""
        x_scale, y_scale = target[1] / source[1], target[0] / source[0]
        x0, y0, x1, y1 = self.box
        corners = (round(x0 * x_scale), round(y0 * y_scale), round(x1 * x_scale), round(y1 * y_scale))
        return replace(self, box=corners)


def is_degenerate(box: Box) -> bool:
    """Tell whether a box holds no pixel."""
    return box[0] >= box[2] or box[1] >= box[3]


def pick_winners(
    crop_features: Float[Tensor, "crops channels"],
    description_embeddings: Float[Tensor, "classes channels"],
    candidates: Sequence[Sequence[int]],
) -> list[int]:
    """Choose for each crop the candidate class whose description is nearest to it.

    Args:
        crop_features: L2-normalised class-token features of the plain encoder.
        description_embeddings: L2-normalised, one a class.
        candidates: Class indices to choose from for each crop; the first of equals wins.

    Returns:
        The winning class index of each crop.
    """
    if not candidates:
        return []
    device = crop_features.device
    similarity = crop_features.float() @ description_embeddings.to(device).float().mT
    width = max(map(len, candidates))
    table = torch.tensor([[*group, *[-1] * (width - len(group))] for group in candidates], device=device)
    offered = similarity.gather(1, table.clamp_min(0)).masked_fill(table < 0, -torch.inf)
    winners: list[int] = table.gather(1, offered.argmax(1, keepdim=True))[:, 0].tolist()
    return winners


def resolve_groups(
    purification: ImagePurification,
    winners: Sequence[Sequence[int | None]],
    variant: PurificationVariant,
    patch_size: int,
) -> tuple[Float[Tensor, "kept windows rows columns"], tuple[BoxEdit, ...]]:
    """Apply the winners to the maps, or turn them into edits of the full-size scores.

    Args:
        purification: Of one image.
        winners: Class index for each box of each group; None for a degenerate box.
        variant: "released": losers are zeroed in the whole window, unless a box of theirs is degenerate.
            "paper": losers are zeroed inside the box. "image": maps stay; apply the edits with `apply_box_edits`.
        patch_size: Side of a patch in pixels.

    Returns:
        The maps and the edits (empty but for "image"), largest boxes first. The maps given are not changed.
    """
    position = {index: place for place, index in enumerate(purification.kept.tolist())}
    if variant == "image":
        edits = [
            BoxEdit(box, position[winner], tuple(position[index] for index in group.classes))
            for group, group_winners in zip(purification.groups, winners, strict=True)
            for box, winner in zip(group.boxes, group_winners, strict=True)
            if winner is not None
        ]
        return purification.maps, tuple(sorted(edits, key=_negative_area))
    maps = purification.maps.clone() if purification.groups else purification.maps
    for group, group_winners in zip(purification.groups, winners, strict=True):
        for place, region in _losses(group, group_winners, variant, patch_size):
            maps[position[place], group.window, region[0], region[1]] = 0
    return maps, ()


def _negative_area(edit: BoxEdit) -> int:
    x0, y0, x1, y1 = edit.box
    return -(x1 - x0) * (y1 - y0)


def _losses(
    group: GroupProposal, winners: Sequence[int | None], variant: PurificationVariant, patch_size: int
) -> list[tuple[int, tuple[slice, slice]]]:
    """List the classes that lose in a window, each with the patches where it does."""
    everywhere = (slice(None), slice(None))
    if variant == "released":
        if None in winners:
            return []
        return [(index, everywhere) for index in group.classes if index not in winners]
    return [
        (index, (slice(y0 // patch_size, y1 // patch_size), slice(x0 // patch_size, x1 // patch_size)))
        for (x0, y0, x1, y1), winner in zip(group.boxes, winners, strict=True)
        if winner is not None
        for index in group.classes
        if index != winner
    ]


def apply_box_edits(
    scores: Float[Tensor, "kept rows width"], first_row: int, edits: Iterable[BoxEdit]
) -> Float[Tensor, "kept rows width"]:
    """Let each winner take its box: it gets the largest score of its group there, the others 0.

    Args:
        scores: Scores of the kept classes on a strip of rows of the image; changed in place.
        first_row: Row of the image that the strip starts at.
        edits: Edits in pixels of this image, in the order of `resolve_groups` (a box inside another of the
            same group is decided after it).

    Returns:
        `scores`.
    """
    rows = scores.shape[1]
    for edit in edits:
        x0, y0, x1, y1 = edit.box
        top, bottom = max(y0 - first_row, 0), min(y1 - first_row, rows)
        if top >= bottom or x0 >= x1:
            continue
        members = list(edit.members)
        best = scores[members, top:bottom, x0:x1].amax(0)
        scores[members, top:bottom, x0:x1] = 0
        scores[edit.winner, top:bottom, x0:x1] = best
    return scores
