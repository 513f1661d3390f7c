"""tlp: maps are smoothed over a grid of the picture whose edges hold, where they are unsure (the text-aware Laplacian
propagation of PEARL, CVPR 2026, as its code does it).

On a grid of about 80 cells a side, f minimizes  sum_i c_i (f_i - z_i)^2 + sum_ij w_ij (f_i - f_j)^2:  z are the
scores, c how sure a cell is, w_ij small across the picture's edges. The code's "text awareness" is a number a class,
the diagonal of its class similarity; other entries never enter. It is a global system on a small grid, so an image of
any size takes the same memory for its maps: maps x (at most 120 x 120 cells).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.config import RefinerSettings, TlpConfig
from ovss_core.images.stitch import bilinear_matrix
from ovss_core.refiners.base import Guide, Piece, Refiner, ScoreMaps, chunks, numbers_at_once, whole

LEAST_SURE = 0.05
EDGE_SHARPNESS = 5.0
TEXT_TEMPERATURE, SELF_SIMILARITY = 0.5, 10.0
LUMA = (0.299, 0.587, 0.114)
GUARD = 1e-12


class TlpRefiner(Refiner):
    """Laplacian propagation by conjugate gradients."""

    name = "tlp"

    def __init__(self, settings: RefinerSettings | None = None) -> None:
        super().__init__(settings)
        self._tlp = settings if isinstance(settings, TlpConfig) else TlpConfig()

    def refine(self, scores: ScoreMaps, guide: Guide) -> Iterator[Piece]:
        """Propagate on the grid, then upsample strip by strip."""
        height, width = scores.size
        cell = tuple(max(1, round(side / self._tlp.grid)) for side in scores.size)
        most = numbers_at_once(guide.pixels.device)
        luma = guide.pixels.new_tensor(LUMA)
        pooled, gray = [], []
        for rows in _whole_cells(height, cell[0], most // max(1, width * len(scores))):
            strip = scores.part(whole(len(scores)), rows, whole(width))
            pooled.append(F.avg_pool2d(strip[None], cell)[0])
            gray.append(F.avg_pool2d(guide.part(rows, whole(width))[None], cell)[0])
        # float64: conjugate gradients go past convergence on small grids, where fewer digits make them wander
        smoothed = propagate(
            torch.cat(pooled, 1).double(),
            torch.einsum("c,chw->hw", luma, torch.cat(gray, 1)).double(),
            own_similarity(scores.vectors.double()),
            self._tlp.steps,
        ).float()
        vertical, horizontal = (
            bilinear_matrix(length, output).to(smoothed)
            for length, output in zip(smoothed.shape[1:], scores.size, strict=True)
        )
        across = smoothed @ horizontal.T
        for rows in chunks(height, most // max(1, width * len(scores))):
            yield Piece(whole(len(scores)), rows, whole(width), vertical[rows] @ across)


def own_similarity(vectors: Float[Tensor, "maps channels"]) -> Float[Tensor, " maps"]:
    """Return the diagonal of S = softmax(T T^T / 0.5) + 10 I with rows scaled to sum 1: all of S that is used."""
    similarity = (vectors @ vectors.T / TEXT_TEMPERATURE).softmax(1)
    return (similarity.diagonal() + SELF_SIMILARITY) / (similarity.sum(1) + SELF_SIMILARITY)


def propagate(
    scores: Float[Tensor, "maps rows columns"],
    gray: Float[Tensor, "rows columns"],
    similarity: Float[Tensor, " maps"],
    steps: int,
) -> Float[Tensor, "maps rows columns"]:
    """Solve (diag(c) + Laplacian) f = c z by conjugate gradients from f = z, one step length for all maps.

    Args:
        scores: z; p is their softmax over maps, without a scale.
        gray: Brightness of the cells.
        similarity: S_kk of each map.
        steps: Of conjugate gradients.

    c = max(max_k p_k, 0.05)^2 (1 + sum_k S_kk p_k^2);
    w_ij = min(1, exp(-5 |y_i - y_j| / mean |y_i - y_j|) (1 + sum_k S_kk p_k(i) p_k(j))) between 4-neighbors.
    """
    share = scores.softmax(0)
    weighted = share * similarity[:, None, None]
    sure = share.amax(0).clamp_min(LEAST_SURE).square() * (1 + (weighted * share).sum(0))
    down = _edges((gray[1:] - gray[:-1]).abs(), (weighted[:, 1:] * share[:, :-1]).sum(0))
    across = _edges((gray[:, 1:] - gray[:, :-1]).abs(), (weighted[:, :, 1:] * share[:, :, :-1]).sum(0))

    def applied(values: Tensor) -> Tensor:
        result = sure * values
        flow = down * (values[:, 1:] - values[:, :-1])
        result[:, 1:] += flow
        result[:, :-1] -= flow
        flow = across * (values[:, :, 1:] - values[:, :, :-1])
        result[:, :, 1:] += flow
        result[:, :, :-1] -= flow
        return result

    found = scores.clone()
    residual = sure * scores - applied(found)
    direction, squared = residual.clone(), residual.square().sum()
    for _ in range(steps):
        turned = applied(direction)
        step = squared / (direction * turned).sum().clamp_min(GUARD)
        found += step * direction
        residual -= step * turned
        before, squared = squared, residual.square().sum()
        direction = residual + squared / before.clamp_min(GUARD) * direction
    return found


def _edges(difference: Tensor, agreement: Tensor) -> Tensor:
    """Return the weights of neighboring cells: none where the picture has an edge."""
    if not difference.numel():
        return difference
    return (
        (-EDGE_SHARPNESS * difference / difference.mean().clamp_min(GUARD)).exp() * (1 + agreement)
    ).clamp_max(1)


def _whole_cells(length: int, cell: int, most: int) -> Iterator[slice]:
    """Split rows into strips of whole cells; rows that fill no cell are left out, as the code does."""
    return chunks(length // cell * cell, max(1, most // cell) * cell)
