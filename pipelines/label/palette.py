"""Colors of classes that can be told apart: in RGB, to the eye, and to eyes that lack a kind of cones."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float

from ovss_core.vocabulary import Vocabulary

LEAST_DISTANCE = 30.0
"""No two of the first 150 colors are nearer than this in RGB."""
BACKGROUND = 40
"""Red, green and blue of a class that is background."""
_STEP, _MOST = 15, 512
_LIGHT = 30.0, 88.0
_COLOR_BLIND_WEIGHT = 1.5
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
_MISSING_CONES = (  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB: no red, no green
    np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
)


def class_colors(vocabulary: Vocabulary) -> np.ndarray:
    """Give every class a color, uint8 [classes, 3]; the background class is nearly black.

    Above 512 classes colors come again.
    """
    colors = distinct_colors()[np.arange(len(vocabulary)) % _MOST]
    if vocabulary.background_index is not None:
        colors[vocabulary.background_index] = BACKGROUND
    return colors


@lru_cache(maxsize=1)
def distinct_colors() -> np.ndarray:
    """Choose colors one by one, each as far as can be from those before, uint8 [512, 3].

    As Glasbey et al. (2007) do: from a grid over RGB, by distances in CIE Lab, of which the least over normal sight,
    protanopia and deuteranopia counts. A color nearer than `LEAST_DISTANCE` in RGB to one before is only taken when no
    other is left, which happens behind the 150th.
    """
    levels = np.arange(0, 256, _STEP)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3).astype(np.float64)
    seen = [lab(grid), *(_COLOR_BLIND_WEIGHT * lab(grid, cones) for cones in _MISSING_CONES)]
    grid, *seen = (
        table[(seen[0][:, 0] >= _LIGHT[0]) & (seen[0][:, 0] <= _LIGHT[1])] for table in (grid, *seen)
    )
    apart = np.full(len(grid), np.inf)
    plain = np.sqrt(((grid - BACKGROUND) ** 2).sum(1))
    chosen = [int(np.argmin(((grid - (225, 60, 45)) ** 2).sum(1)))]  # the first is red
    while len(chosen) < _MOST:
        last = chosen[-1]
        nearest = np.min([np.sqrt(((table - table[last]) ** 2).sum(1)) for table in seen], axis=0)
        apart = np.minimum(apart, nearest)
        apart[last] = -1
        plain = np.minimum(plain, np.sqrt(((grid - grid[last]) ** 2).sum(1)))
        far = plain >= LEAST_DISTANCE
        chosen.append(
            int(np.argmax(np.where(far, apart, -1) if far.any() else np.where(apart < 0, -1, plain)))
        )
    colors: np.ndarray = grid[chosen].astype(np.uint8)
    return colors


def lab(
    colors: Float[np.ndarray, "colors 3"], cones: Float[np.ndarray, "3 3"] | None = None
) -> Float[np.ndarray, "colors 3"]:
    """Turn sRGB of 0 to 255 into CIE Lab.

    Args:
        cones: What an eye makes of linear RGB that lacks a kind of cones; None for normal sight.
    """
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    if cones is not None:
        linear = (linear @ cones.T).clip(0, 1)
    x, y, z = (np.cbrt(np.maximum(linear @ _TO_XYZ.T / _WHITE, 1e-9))).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
