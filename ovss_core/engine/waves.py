"""What stage 1 works on: images resized, then cut into windows and put together in waves, then encoded.

Everything in a wave has windows of one size, image after image, so that the tower, the head and purification each work on
one table for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ovss_core.class_purification.placement import Placement
from ovss_core.clip.trace import WindowRegions
from ovss_core.dense_heads.scoring import Evidence
from ovss_core.engine.heads import mean_features
from ovss_core.images.pixels import ImagePixels
from ovss_core.images.windows import WindowLayout, group_alike
from ovss_core.regions import RegionMap


@dataclass(frozen=True)
class PreparedImage:
    """A decoded image, resized for windows.

    Attributes:
        size: Height and width of the image.
        pixels: The resized image, uint8 RGB [height, width, 3].
        proxy_pixels: The image at the size of a second tower that sees more pixels, or None.
        regions: Its region map, where regions are used, or None.
    """

    size: tuple[int, int]
    pixels: np.ndarray
    proxy_pixels: np.ndarray | None = None
    regions: RegionMap | None = None


@dataclass(frozen=True)
class Wave:
    """Images whose windows all have one size, cut.

    Attributes:
        places: Their positions in the call.
        sizes: Height and width of each image.
        layouts: Where its windows lie.
        pixels: The images on the device, out of which windows and regions are cut.
        placement: Where the windows lie, for purification.
        proxy_pixels: The same images for a second tower that sees more pixels; None where it sees CLIP's.
        region_maps: Each image's region map, or None where no image has one.
        regions: Which region each patch lies in, where patches see inside regions only.
    """

    places: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    layouts: tuple[WindowLayout, ...]
    pixels: ImagePixels
    placement: Placement
    proxy_pixels: ImagePixels | None = None
    region_maps: tuple[RegionMap | None, ...] | None = None
    regions: WindowRegions | None = None

    def parts(self, size: int) -> list[slice]:
        """Split the windows into batches of at most `size`."""
        return [slice(first, first + size) for first in range(0, len(self.pixels), size)]


@dataclass(frozen=True)
class Encoded:
    """What the tower and the dense head make of the windows of a wave.

    Attributes:
        features: Unit features; of several heads the mean of theirs.
        attention: Mean attention over blocks and heads, where purification follows.
        evidence: What a scoring head needs beside the features until it sees the words.
        whole: Unit features of each image as a whole, where the class prior is on.
        of_heads: Unit features of each head, where there are several.
        disagreement: Share of each image on which they disagree, once the words are known.
    """

    features: Float[Tensor, "windows patches channels"]
    attention: Float[Tensor, "windows patches patches"] | None
    evidence: Evidence | None = None
    whole: Float[Tensor, "images channels"] | None = None
    of_heads: tuple[Float[Tensor, "windows patches channels"], ...] = ()
    disagreement: Float[Tensor, " images"] | None = None

    @classmethod
    def of(
        cls,
        of_heads: Sequence[Tensor],
        attention: Tensor | None,
        evidence: Evidence | None,
        whole: Tensor | None,
    ) -> "Encoded":
        """Join what one or several heads made of the same windows."""
        kept = tuple(of_heads) if len(of_heads) > 1 else ()
        return cls(mean_features(of_heads), attention, evidence, whole, kept)


def plan_waves(layouts: Sequence[WindowLayout], limit: int) -> list[list[int]]:
    """Group images by window size into waves of at most `limit` windows (one image at least)."""
    return group_alike([layout.window_size for layout in layouts], list(map(len, layouts)), limit)
