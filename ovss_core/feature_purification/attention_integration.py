"""HAI: average the features by the attention of all layers, outliers left out (SFP, eq. 8-11)."""

import torch
from jaxtyping import Float
from torch import Tensor


def integrate_attention(
    attention: Float[Tensor, "windows patches patches"],
    features: Float[Tensor, "windows patches width"],
    rounds: int = 1,
) -> Float[Tensor, "windows patches width"]:
    """Apply the row- then column-normalized layer sum of attention to the features.

    The normalized map is diag(r) A diag(c) with vectors r and c, so it is never formed.

    Args:
        attention: Sum over layers of the head-mean patch-patch attention with outlier columns zeroed.
        features: What is averaged, F_SAE.
        rounds: Row-then-column rounds (Sinkhorn); the paper does one.

    Returns:
        F_vis = A_HAI F. A patch that is an outlier in every layer has a zero column and is simply never
        attended to; a zero row gives zero features, never NaN.
    """
    rows, columns = scaling_vectors(attention, rounds)
    averaged = attention @ (columns[..., None] * features.to(attention.dtype))
    return (rows[..., None] * averaged).to(features.dtype)


def scaling_vectors(
    attention: Float[Tensor, "windows patches patches"], rounds: int
) -> tuple[Float[Tensor, "windows patches"], Float[Tensor, "windows patches"]]:
    """Return r and c such that diag(r) A diag(c) is A normalized by rows, then columns, `rounds` times."""
    rows = attention.new_ones(attention.shape[:2])
    columns = attention.new_ones(attention.shape[:2])
    for _ in range(rounds):
        rows = _reciprocal(torch.einsum("wij,wj->wi", attention, columns))
        columns = _reciprocal(torch.einsum("wij,wi->wj", attention, rows))
    return rows, columns


def _reciprocal(values: Tensor) -> Tensor:
    """1 / values, and 0 where a value is 0: a token nobody attends to carries no weight."""
    return torch.where(values > 0, values.clamp_min(torch.finfo(values.dtype).tiny).reciprocal(), 0)
