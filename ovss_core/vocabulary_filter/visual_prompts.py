"""A picture a word: the picture itself inside the word's mask, and something less clear outside.

By OpenCV's own filters, to the byte as CaR's released code has them; so gray is what OpenCV makes of BGR, with red and blue
the other way round.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from ovss_core.config import VisualPrompt

BLUR = 15
RED = (255, 0, 0)


def prompt_picture(
    picture: UInt8[np.ndarray, "height width 3"],
    masks: Bool[np.ndarray, "words height width"],
    prompt: VisualPrompt,
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Yield the picture as it is shown for each word.

    Args:
        picture: RGB.
        masks: Where each word is; nowhere leaves nothing of the picture clear.
        prompt: "circle_blur" blurs what is outside and draws a red ellipse of the mask's height and width around the mean
            of its pixels; "blur_gray" blurs it and takes its color.
    """
    outside = cv2.GaussianBlur(np.ascontiguousarray(picture), (BLUR, BLUR), 0)
    if prompt == "blur_gray":
        outside = cv2.cvtColor(outside, cv2.COLOR_BGR2GRAY)[..., None]
    for mask in masks:
        shown = np.where(mask[..., None], picture, outside)
        yield _encircle(shown, mask) if prompt == "circle_blur" else shown


def _encircle(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    y, x = mask.nonzero()
    if not len(y):
        return picture
    center = int(x.mean()), int(y.mean())
    axes = int(x.max() - x.min() + 1) // 2, int(y.max() - y.min() + 1) // 2
    drawn: np.ndarray = cv2.ellipse(picture, center, axes, 0, 0, 360, RED, 1)
    return drawn
