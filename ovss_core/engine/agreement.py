"""How far several heads agree about an image: the share of it on which their labels would differ.

Asked of every pixel, this would stitch and compare the maps of all words at the image's size once more for each head,
which costs as much as labelling by it. It is asked of a lattice instead, two points a patch along each side: there each
head's scores are stitched exactly as for labels, and the words compared. Asking patches before they are stitched would be
cheaper still, but where heads are alike they differ most in what the average over windows takes away.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.engine.label_strips import budget
from ovss_core.images.stitch import Stitcher
from ovss_core.images.windows import WindowLayout

POINTS = 2
"""Points of the lattice a patch, along each side."""


def lattice(
    layouts: Sequence[WindowLayout], grid: tuple[int, int], patch: int, device: torch.device
) -> Stitcher:
    """Return what stitches maps at the points of each image's lattice.

    Args:
        layouts: Each image's windows, all of one size.
        grid: Rows and columns of patches of a window.
        patch: Side of a patch in pixels of the resized image.
    """
    sizes = tuple(
        (-(-POINTS * layout.image_size[0] // patch), -(-POINTS * layout.image_size[1] // patch))
        for layout in layouts
    )
    return Stitcher(tuple(layouts), grid, sizes, device)


def best_classes(
    features: Float[Tensor, "windows patches channels"],
    points: Stitcher,
    phrases: Float[Tensor, "phrases channels"],
    phrase_class: Int[Tensor, " phrases"],
    allowed: Bool[Tensor, "images phrases"] | None = None,
) -> Int[Tensor, "images height width"]:
    """Return the class of the phrase that scores best at each point; padding holds anything.

    Args:
        features: Of one head.
        points: Where to compare.
        phrases: Unit vectors.
        phrase_class: Whose each is.
        allowed: Phrases that may win in each image; where none may, the first one's class is named. None allows all.
    """
    scored = (
        len(phrases) <= features.shape[2]
    )  # stitching is linear: the smaller of scores and features is stitched
    maps = phrases @ features.mT if scored else features.mT
    stitched = points.stitch(points.tile(maps))
    height, width = points.size
    step = max(1, budget(features.device) // (len(phrases) * height * width))
    found = []
    for start in range(0, len(stitched), step):
        part = slice(start, start + step)
        flat = stitched[part].flatten(2)
        scores = flat if scored else phrases @ flat
        if allowed is not None:
            scores = scores.masked_fill(~allowed[part, :, None], -torch.inf)
        found.append(phrase_class[scores.argmax(1)].unflatten(1, (height, width)))
    return torch.cat(found)


def disagreement(
    of_heads: Sequence[Int[Tensor, "images height width"]],
    points: Stitcher,
    foreground: Bool[Tensor, "images height width"] | None = None,
) -> Float[Tensor, " images"]:
    """Return the share of each image's points at which not all heads name one class.

    Args:
        of_heads: Each head's class at each point.
        points: Which points are an image's own.
        foreground: Points that no head decides where it is false, for a background takes them; None counts all.
    """
    differ = torch.zeros_like(of_heads[0], dtype=torch.bool)
    for other in of_heads[1:]:
        differ |= other != of_heads[0]
    if foreground is not None:
        differ &= foreground
    inside = points.inside
    return (differ & inside).sum((1, 2)) / inside.sum((1, 2))
