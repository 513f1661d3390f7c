"""What a pixel's neighbors give to it (PAMR: Araslanov and Roth, "Single-Stage Semantic Segmentation from Image
Labels", CVPR 2020): a refiner of scores, and part of ResCLIP's feedback.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CONTRAST = 0.1
"""Share of the local standard deviation that counts as one step of difference."""


def neighbor_weights(
    picture: Float[Tensor, "*batch 3 height width"], dilations: Sequence[int]
) -> Float[Tensor, "*batch neighbors height width"]:
    """Return how much each neighbor gives to a pixel; the weights of a pixel sum to 1.

    a_p = softmax over neighbors of mean over channels of -|x - x_p| / (1e-8 + 0.1 s), s the unbiased standard
    deviation over the pixel's 3 x 3 squares at all dilations. Beyond the border the border's pixels repeat.

    Args:
        picture: Normalized pixels, of one picture or of several of one size.
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
    distance = torch.stack([((neighbor - picture).abs() / step).mean(-3) for neighbor in shifted], -3)
    return distance.neg_().softmax(-3)


def spread_to_neighbors(
    maps: Float[Tensor, "*batch maps height width"],
    weights: Float[Tensor, "*batch neighbors height width"],
    dilations: Sequence[int],
) -> Float[Tensor, "*batch maps height width"]:
    """Replace each value by the weighted mean of its neighbors' values; the pixel itself has no part in it."""
    result = torch.zeros_like(maps)
    for weight, neighbor in zip(weights.unbind(-3), _shifted(maps, dilations), strict=True):
        result.addcmul_(neighbor, weight.unsqueeze(-3))
    return result


def _shifted(
    planes: Float[Tensor, "*batch planes height width"], dilations: Sequence[int]
) -> Iterator[Tensor]:
    """Yield what lies at each of the 8 neighbors of every pixel, border pixels repeated; all are views of one table."""
    height, width = planes.shape[-2:]
    margin = max(dilations)
    padded = F.pad(planes, (margin,) * 4, mode="replicate")
    for dilation in dilations:
        for down in (-dilation, 0, dilation):
            for across in (-dilation, 0, dilation):
                if down or across:
                    top, left = margin + down, margin + across
                    yield padded[..., top : top + height, left : left + width]
