"""What becomes of an image that the model turned into something else than numbers: an error of its own."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.errors import ImageError
from ovss_core.kernels import use_kernel

WINDOWS, CROPS, SCORES = "features of its windows", "features of its ambiguous regions", "scores"
PICTURES = "features of the pictures of its words"
Value = TypeVar("Value")


def finite_rows(values: Float[Tensor, "rows *columns"]) -> Bool[Tensor, " rows"]:
    """Say of each row of unit features whether it holds numbers.

    One sum is enough: a single value that is not finite makes it so. Features too large for their norm come out of the
    normalization as zeros.
    """
    if use_kernel(values) and values.dtype == torch.float32:
        from ovss_core.kernels.finite_triton import launch_sound

        return launch_sound(values, None)
    sums = values.square().flatten(1).sum(1)
    return sums.isfinite() & (sums > 0)


def sound_windows(
    features: Float[Tensor, "windows patches channels"],
    attention: Float[Tensor, "windows patches patches"] | None,
) -> Bool[Tensor, " windows"]:
    """Say of each window whether its unit features and its attention are numbers."""
    if use_kernel(features) and features.dtype == torch.float32:
        from ovss_core.kernels.finite_triton import launch_sound

        return launch_sound(features, attention)
    sound = finite_rows(features)
    return sound if attention is None else sound & attention.sum((1, 2)).isfinite()


def not_finite(what: str) -> ImageError:
    """Describe values that overflowed or come from weights that are no numbers."""
    return ImageError(
        f"the {what} are not finite; float16 may overflow where bfloat16 and float32 do not (--precision), and weights "
        "may be damaged"
    )


def raise_first(outcomes: Sequence[Value | ImageError]) -> list[Value]:
    """Return the values, or raise the first error among them."""
    values: list[Value] = []
    for outcome in outcomes:
        if isinstance(outcome, ImageError):
            raise outcome
        values.append(outcome)
    return values
