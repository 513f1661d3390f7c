"""The plain encoder's class token of pictures cut out of images: ambiguous regions, and images as a whole."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ovss_core.class_purification.placement import Placement
from ovss_core.clip.positions import Resampling
from ovss_core.clip.tower import ImageEncoder
from ovss_core.images.pixels import ImagePixels
from ovss_core.images.resize import normalize


def encode_crops(
    encoder: ImageEncoder,
    crops: UInt8[Tensor, "crops side side 3"],
    normalization: tuple[Sequence[float], Sequence[float]],
    resampling: Resampling,
    batch: int,
) -> Float[Tensor, "crops features"]:
    """Encode crops in full batches; unit features, float32.

    Args:
        crops: RGB; one at least.
        normalization: Mean and standard deviation of the tower's pixels.
        resampling: How positions are resampled.
        batch: Crops encoded at once.
    """
    encoded = []
    for part in crops.split(batch):
        pixels = normalize(part.to(encoder.device), *normalization)
        encoded.append(F.normalize(encoder.class_features(pixels, resampling).float(), dim=-1))
    return torch.cat(encoded)


def cut_whole_images(
    pixels: ImagePixels, placement: Placement, side: int
) -> UInt8[Tensor, "images side side 3"]:
    """Squeeze each image as a whole into a square of `side` pixels."""
    limits = placement.image_limits
    corners = torch.cat([torch.zeros_like(limits), limits], 1)
    return pixels.cut_regions(torch.arange(len(limits), device=limits.device), corners, side)
