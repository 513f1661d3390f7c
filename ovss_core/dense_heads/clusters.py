"""Clusters of patches by density (DBSCAN), and the smoothed maps that make regions of them, as CLIPtrase does."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

NOISE = -1
"""Number of a patch in no cluster."""
ENLARGED = 4
MEDIAN_SIDE = 7


@dataclass(frozen=True)
class Clusters:
    """The clusters of windows, numbered from 0 by their first dense patch.

    Attributes:
        numbers: Cluster of each patch; -1 for noise.
        counts: Clusters of each window.
        maps: What the patches of each cluster have in common with every place, four times as fine as the patches;
            minus infinity for a cluster that a window lacks.
    """

    numbers: Int[Tensor, "windows patches"]
    counts: Int[Tensor, " windows"]
    maps: Float[Tensor, "windows clusters height width"]

    def index_at(self, size: tuple[int, int]) -> Int[Tensor, "windows rows columns"]:
        """Return the cluster of each place of a grid of `size`: every place has one, noise or not."""
        if not self.maps.shape[1]:
            return torch.zeros(len(self.maps), *size, dtype=torch.int64, device=self.maps.device)
        large = F.interpolate(self.maps.nan_to_num(neginf=-1.0), size=size, mode="bilinear")
        return large.argmax(1)


def cluster_by_density(
    correlation: Float[Tensor, "windows patches patches"],
    grid: tuple[int, int],
    distance: float,
    neighbors: int,
) -> Clusters:
    """Cluster the rows of a correlation as points (DBSCAN), and smooth each cluster's mean row by a median.

    How many clusters there are is counted, for which a GPU is waited for.

    Args:
        correlation: Not negative.
        grid: Rows and columns of patches.
        distance: Points not farther apart are neighbors.
        neighbors: A point with so many neighbors, itself among them, is dense.
    """
    numbers, counts = density_numbers(correlation, distance, neighbors)
    most = int(counts.max()) if len(counts) else 0
    slots = torch.arange(most, device=numbers.device)
    member = (numbers[:, None] == slots[:, None]).to(correlation.dtype)
    mean = (member @ correlation) / member.sum(2, keepdim=True).clamp_min(1)
    fine = (
        F.interpolate(mean.unflatten(2, grid), scale_factor=ENLARGED, mode="bilinear")
        if most
        else (mean.new_zeros(len(mean), 0, *(ENLARGED * side for side in grid)))
    )
    smoothed = torch.stack([median(window) for window in fine])
    absent = slots >= counts[:, None]
    return Clusters(numbers, counts, smoothed.masked_fill(absent[..., None, None], -torch.inf))


def density_numbers(
    points: Float[Tensor, "windows points features"], distance: float, neighbors: int
) -> tuple[Int[Tensor, "windows points"], Int[Tensor, " windows"]]:
    """Number the clusters of points, and count them.

    A cluster is what dense points reach from neighbor to neighbor. A point that is not dense belongs to the first
    cluster that has a dense neighbor of it, or is noise.
    """
    wide, count = points.double(), points.shape[1]
    squares = wide.square().sum(2)
    between = squares[:, :, None] + squares[:, None] - 2 * wide @ wide.mT
    near = between <= distance**2
    near |= torch.eye(count, dtype=torch.bool, device=points.device)
    dense = near.sum(2) >= neighbors
    linked = near & dense[:, :, None] & dense[:, None]
    # reach of 1, 2, 4, ... steps: so many squarings cover any chain
    reached = linked.float()
    for _ in range(max(count - 1, 1).bit_length()):
        reached = (reached @ reached > 0).float()
    order = torch.arange(count, device=points.device)
    first = torch.where(reached > 0, order, count).amin(2)
    first = torch.where(near & dense[:, None], first[:, None], count).amin(2)
    leads = (first == order) & dense
    number = leads.cumsum(1) - 1
    found = number.gather(1, first.clamp_max(count - 1))
    return torch.where(first < count, found, NOISE), leads.sum(1)


def median(maps: Float[Tensor, "maps height width"]) -> Float[Tensor, "maps height width"]:
    """Take the median of the 7 x 7 places around each; beyond the border maps are mirrored, the edge repeated."""
    rows, columns = (_mirrored(side, maps.device) for side in maps.shape[1:])
    around = maps[:, rows][:, :, columns].unfold(1, MEDIAN_SIDE, 1).unfold(2, MEDIAN_SIDE, 1)
    return around.flatten(3).median(3).values


def _mirrored(length: int, device: torch.device) -> Int[Tensor, " places"]:
    reach = MEDIAN_SIDE // 2
    places = torch.arange(-reach, length + reach, device=device)
    places = torch.where(places < 0, -1 - places, places)
    return torch.where(places >= length, 2 * length - 1 - places, places)
