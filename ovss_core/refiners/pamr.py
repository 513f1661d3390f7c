"""pamr: maps flow between look-alike pixels (PAMR: Araslanov and Roth, "Single-Stage Semantic Segmentation from Image
Labels", CVPR 2020; NACLIP, ResCLIP, ITACLIP and RF-CLIP report figures with it).

A pixel's new value is a weighted mean of its neighbors' values, some times over. The weights follow from the picture
alone and are the same for every map, so maps are refined in any blocks, one shifted copy added after the other; and
as a value travels at most iterations x dilation pixels, a large image is refined in rectangles with that margin, to
the same numbers.
"""

from collections.abc import Iterator

from ovss_core.config import PamrConfig, RefinerSettings
from ovss_core.images.neighbors import neighbor_weights, spread_to_neighbors
from ovss_core.refiners.base import Guide, Piece, Refiner, ScoreMaps, chunks, numbers_at_once

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
