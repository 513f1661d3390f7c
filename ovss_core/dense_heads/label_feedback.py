"""Labels of a first pass as an attention of their own: patches of one label that see each other (ResCLIP's feedback)."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ovss_core.images.neighbors import neighbor_weights, spread_to_neighbors

DILATIONS, ITERATIONS = (8, 16), 10
LOGIT_SCALE = 40.0
BLUR_DEVIATION, BLUR_WIDTH = 5.0, 31
CPU_NUMBERS, DEVICE_NUMBERS = 1 << 22, 1 << 28
"""Numbers of the full-size maps of the windows that are refined at once."""


def label_patches(
    cosines: Float[Tensor, "windows phrases patches"],
    windows: Float[Tensor, "windows 3 height width"],
    grid: tuple[int, int],
    threshold: float,
) -> Int[Tensor, "windows patches"]:
    """Label each patch by the phrase of most of its pixels, the smallest of equals.

    Cosines are enlarged to the window and refined along its pixels; a pixel whose best probability is below the
    threshold gets phrase 0, as in the authors' code.
    """
    size, count = (windows.shape[2], windows.shape[3]), cosines.shape[1]
    limit = CPU_NUMBERS if windows.device.type == "cpu" else DEVICE_NUMBERS
    step = max(1, limit // max(count * size[0] * size[1], 1))
    found = []
    for part, pixels in zip(cosines.split(step), windows.float().split(step), strict=True):
        probability = coarse_probability(part, pixels, grid)
        best, label = probability.max(1)
        found.append(most_frequent(torch.where(best < threshold, 0, label), grid, count))
    return torch.cat(found)


def coarse_probability(
    cosines: Float[Tensor, "windows phrases patches"],
    windows: Float[Tensor, "windows 3 height width"],
    grid: tuple[int, int],
) -> Float[Tensor, "windows phrases height width"]:
    """Return the probabilities of pixels after refinement."""
    large = F.interpolate(cosines.unflatten(2, grid), size=windows.shape[2:], mode="bilinear")
    weights = neighbor_weights(windows, DILATIONS)
    for _ in range(ITERATIONS):
        large = spread_to_neighbors(large, weights, DILATIONS)
    return (LOGIT_SCALE * large).softmax(1)


def most_frequent(
    label: Int[Tensor, "windows height width"], grid: tuple[int, int], count: int
) -> Int[Tensor, "windows patches"]:
    """Return the label of most pixels of each patch; pixels beyond the last whole patch have no part."""
    side = label.shape[1] // grid[0], label.shape[2] // grid[1]
    cut = label[:, : grid[0] * side[0], : grid[1] * side[1]]
    cells = cut.unflatten(2, (grid[1], side[1])).unflatten(1, (grid[0], side[0]))
    pixels = cells.transpose(2, 3).flatten(3).flatten(1, 2)
    counts = torch.zeros(*pixels.shape[:2], count, dtype=torch.int64, device=label.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    order = torch.arange(count, device=label.device)
    return (counts * count - order).argmax(2)


def label_attention(
    label: Int[Tensor, "windows patches"], grid: tuple[int, int]
) -> Float[Tensor, "windows patches patches"]:
    """Return how much patches of one label attend to each other: less where others lie between; rows sum to 1.

    Two such patches have 1 where the straight path between them keeps their label, else exp(-d / d_max), d the larger
    of their distances in rows and columns. As released, each row is then blurred along the flattened patches.
    """
    paths, decay = _paths_on(label.device, *grid)
    same = label[:, :, None] == label[:, None]
    clear = torch.ones_like(same)
    for step in paths:
        clear &= label[:, step] == label[:, :, None]
    agreement = same * torch.where(clear, 1.0, decay)
    kernel = _blur_on(label.device, label.shape[1])
    rows = agreement.flatten(0, 1)[:, None]
    blurred = F.conv1d(rows, kernel[None, None], padding=len(kernel) // 2)[:, 0].view_as(agreement)
    return blurred / blurred.sum(2, keepdim=True)


@lru_cache(maxsize=16)
def _paths_on(device: torch.device, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Keep the tables where they are used: bringing them there makes the CPU wait."""
    with torch.inference_mode(False):
        steps, decay = straight_paths(rows, columns)
        return torch.from_numpy(steps).to(device), torch.from_numpy(decay).float().to(device)


def straight_paths(
    rows: int, columns: int
) -> tuple[Int[np.ndarray, "steps patches patches"], Float[np.ndarray, "patches patches"]]:
    """Tabulate which patches lie on the path between every two, and exp(-d / d_max).

    The path is looked at in steps of 1 / d_max of the whole way, d of them: of near patches only the beginning, as
    released. Halves are rounded to even numbers.
    """
    y, x = (table.ravel() for table in np.mgrid[:rows, :columns])
    down, across = y[None] - y[:, None], x[None] - x[:, None]
    distance = np.maximum(np.abs(down), np.abs(across))
    farthest = max(rows, columns, 2) - 1
    steps = []
    for step in range(1, farthest + 1):
        share = np.where(step <= distance, step / farthest, 0.0)
        place_y, place_x = np.rint(y[:, None] + share * down), np.rint(x[:, None] + share * across)
        steps.append((place_y * columns + place_x).astype(np.int64))
    return np.stack(steps), np.exp(-distance / farthest)


@lru_cache(maxsize=16)
def _blur_on(device: torch.device, patches: int) -> Tensor:
    width = min(patches, BLUR_WIDTH)
    width -= 1 - width % 2
    with torch.inference_mode(False):
        offset = torch.arange(width).float() - width // 2
        kernel = (-(offset**2) / (2 * BLUR_DEVIATION**2)).exp()
        return (kernel / kernel.sum()).to(device)
