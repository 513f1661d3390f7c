"""pamr: maps flow between look-alike pixels (PAMR: Araslanov and Roth, "Single-Stage Semantic Segmentation from Image
Labels", CVPR 2020; NACLIP, ResCLIP, ITACLIP and RF-CLIP report figures with it).

A pixel's new value is a weighted mean of its neighbors' values, some times over. The weights follow from the picture
alone and are the same for every map, so maps are refined in any blocks, one shifted copy added after the other; and
as a value travels at most iterations x dilation pixels, a large image is refined in rectangles with that margin, to
the same numbers.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.config import PamrConfig, RefinerSettings
from ovss_core.refiners.base import Guide, Piece, Refiner, ScoreMaps, chunks, numbers_at_once

CONTRAST = 0.1
"""Share of the local standard deviation that counts as one step of difference."""
CACHED = 1 << 20
"""Numbers of a block of maps on a CPU, whose caches hold no more."""


class PamrRefiner(Refiner):
    """Pixel-adaptive mask refinement: m := sum over neighbors p of a_p m(p), `iterations` times."""

    name = "pamr"

    def __init__(self, settings: RefinerSettings | None = None) -> None:
        super().__init__(settings)
        self._pamr = settings if isinstance(settings, PamrConfig) else PamrConfig()

    def refine(self, scores: ScoreMaps, guide: Guide) -> Iterator[Piece]:
        """Refine rectangle by rectangle, and in each block after block of maps."""
        dilations, rounds = self._pamr.dilations, self._pamr.iterations
        device = guide.pixels.device
        most = numbers_at_once(device)
        reach = rounds * max(dilations)
        for rows, columns in rectangles(scores.size, reach, most // (8 * len(dilations) + 8)):
            around, inside = zip(
                *(
                    _with_margin(side, length, reach)
                    for side, length in zip((rows, columns), scores.size, strict=True)
                ),
                strict=True,
            )
            weights = neighbor_weights(guide.part(*around), dilations)
            area = weights.shape[1] * weights.shape[2]
            for maps in chunks(len(scores), (CACHED if device.type == "cpu" else most) // area):
                values = scores.part(maps, *around)
                for _ in range(rounds):
                    values = spread_to_neighbors(values, weights, dilations)
                yield Piece(maps, rows, columns, values[:, inside[0], inside[1]])


def neighbor_weights(
    picture: Float[Tensor, "3 height width"], dilations: Sequence[int]
) -> Float[Tensor, "neighbors height width"]:
    """Return how much each neighbor gives to a pixel; the weights of a pixel sum to 1.

    a_p = softmax over neighbors of mean over channels of -|x - x_p| / (1e-8 + 0.1 s), s the unbiased standard
    deviation over the pixel's 3 x 3 squares at all dilations. Beyond the border the border's pixels repeat.

    Args:
        picture: Normalized pixels.
        dilations: Distance of the 8 neighbors in pixels, one square after another.

    Returns:
        Neighbors of the first dilation first, row by row.
    """
    squares, count = len(dilations), 9 * len(dilations)
    shifted = list(_shifted(picture, dilations))
    mean = (squares * picture + sum(shifted)) / count
    spread = squares * (picture - mean).square()
    for neighbor in shifted:
        spread += (neighbor - mean).square()
    step = (spread / (count - 1)).sqrt_().mul_(CONTRAST).add_(1e-8)
    distance = torch.stack([((neighbor - picture).abs() / step).mean(0) for neighbor in shifted])
    return distance.neg_().softmax(0)


def spread_to_neighbors(
    maps: Float[Tensor, "maps height width"],
    weights: Float[Tensor, "neighbors height width"],
    dilations: Sequence[int],
) -> Float[Tensor, "maps height width"]:
    """Replace each value by the weighted mean of its neighbors' values; the pixel itself has no part in it."""
    result = torch.zeros_like(maps)
    for weight, neighbor in zip(weights, _shifted(maps, dilations), strict=True):
        result.addcmul_(neighbor, weight)
    return result


def _shifted(planes: Float[Tensor, "planes height width"], dilations: Sequence[int]) -> Iterator[Tensor]:
    """Yield what lies at each of the 8 neighbors of every pixel, border pixels repeated; all are views of one table."""
    height, width = planes.shape[1:]
    margin = max(dilations)
    padded = F.pad(planes[None], (margin,) * 4, mode="replicate")[0]
    for dilation in dilations:
        for down in (-dilation, 0, dilation):
            for across in (-dilation, 0, dilation):
                if down or across:
                    top, left = margin + down, margin + across
                    yield padded[:, top : top + height, left : left + width]


def rectangles(size: tuple[int, int], reach: int, area: int) -> Iterator[tuple[slice, slice]]:
    """Split an image into rectangles that hold at most `area` pixels with a margin of `reach` on each side.

    Where the margins alone need more, the sides are as long as the margin.
    """
    height, width = size
    square = int(area**0.5)
    rows = height if height <= square else max(square - 2 * reach, reach, 1)
    tall = min(height, rows + 2 * reach)
    columns = width if width * tall <= area else max(area // tall - 2 * reach, reach, 1)
    for down in chunks(height, rows):
        for across in chunks(width, columns):
            yield down, across


def _with_margin(side: slice, length: int, reach: int) -> tuple[slice, slice]:
    """Return the side with its margin inside the image, and where the side lies in that."""
    start, stop = max(side.start - reach, 0), min(side.stop + reach, length)
    return slice(start, stop), slice(side.start - start, side.stop - start)
