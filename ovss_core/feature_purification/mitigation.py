"""SOM: find each block's outlier tokens and replace them by the mean of their valid neighbors (SFP, eq. 4 and 5)."""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.feature_purification.outliers import attention_outliers
from ovss_core.kernels import use_kernel


@dataclass
class MitigationNotes:
    """What mitigation keeps of one trace.

    Attributes:
        outliers: Patches found, by block.
        filtered_attention: Sum over blocks of the head-mean patch-patch attention with the outliers' columns zeroed.
    """

    outliers: dict[int, Bool[Tensor, "windows patches"]] = field(default_factory=dict)
    filtered_attention: Float[Tensor, "windows patches patches"] | None = None


@dataclass(frozen=True)
class OutlierMitigation:
    """The mitigator inside the tower, a `BlockObserver`: what it repairs goes on to the next block.

    Attributes:
        factor: A patch is a block's outlier when its self attention is below this factor times its class attention.
        limit: At most so many outliers a block, those with the largest class attention; None keeps all.
        repair: Repair each block's outliers before the next block sees them.
        integrate_from: Keep the sum, from this block on, of the attention without the outliers' columns, which HAI
            (eq. 8) needs; None keeps none.
    """

    factor: float
    limit: int | None = None
    repair: bool = True
    integrate_from: int | None = None

    def begin(self) -> MitigationNotes:
        """Start with nothing kept."""
        return MitigationNotes()

    def wants(self, layer: int) -> bool:
        """Say whether block `layer` is repaired or integrated."""
        return self.repair or (self.integrate_from is not None and layer >= self.integrate_from)

    def after_block(
        self,
        observed: MitigationNotes,
        layer: int,
        tokens: Float[Tensor, "windows tokens width"],
        attention: Float[Tensor, "windows tokens tokens"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "windows tokens width"]:
        """Find a block's outliers, add up its attention without them, and repair its output."""
        self_attention = attention.diagonal(dim1=1, dim2=2)[:, 1:]
        outliers = attention_outliers(attention[:, 0, 1:], self_attention, self.factor, self.limit)
        observed.outliers[layer] = outliers
        if self.integrate_from is not None and layer >= self.integrate_from:
            kept = attention[:, 1:, 1:] * ~outliers[:, None, :]
            total = observed.filtered_attention
            observed.filtered_attention = kept if total is None else total.add_(kept)
        return repair_tokens(tokens, outliers, grid) if self.repair else tokens


def repair_tokens(
    tokens: Float[Tensor, "windows tokens width"],
    outliers: Bool[Tensor, "windows patches"],
    grid: tuple[int, int],
) -> Float[Tensor, "windows tokens width"]:
    """Replace outlier patches by the mean of their non-outlier 8-neighbors on the grid.

    Args:
        tokens: Patch tokens, with or without one class token in front (told apart by their number).
        outliers: True where a patch is an outlier.
        grid: Rows and columns of patches; any shape.

    Returns:
        New tokens. An outlier without a valid neighbor stays unchanged (the released code makes it zero and
        thereby every value of its window NaN); without outliers the tokens come back unchanged.
    """
    first = tokens.shape[1] - outliers.shape[1]
    # every patch is averaged and only outliers take the result: no count of them is waited for on a GPU
    patches = tokens[:, first:]
    if use_kernel(tokens):
        from ovss_core.kernels.guidance_triton import launch_repair

        repaired, _ = launch_repair(patches, outliers, grid, norms=False)
        return torch.cat([tokens[:, :first], repaired], 1) if first else repaired
    weights = _adjacency(grid, tokens.device).to(tokens.dtype) * ~outliers[:, None, :]
    count = weights.sum(2, dtype=torch.float32)[..., None]
    mean = (weights @ patches) / count.clamp_min(1)
    repaired = torch.where(outliers[..., None] & (count > 0), mean.to(tokens.dtype), patches)
    return torch.cat([tokens[:, :first], repaired], 1) if first else repaired


@lru_cache(maxsize=64)
def _adjacency(grid: tuple[int, int], device: torch.device) -> Float[Tensor, "patches patches"]:
    """Mark which patches lie beside each other, each beside itself too."""
    rows = torch.arange(grid[0], device=device).repeat_interleave(grid[1])
    columns = torch.arange(grid[1], device=device).repeat(grid[0])
    return (((rows[:, None] - rows).abs() <= 1) & ((columns[:, None] - columns).abs() <= 1)).float()
