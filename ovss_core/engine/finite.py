"""What becomes of an image that the model turned into something else than numbers: an error of its own."""

from collections.abc import Sequence
from typing import TypeVar

from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.errors import ImageError

WINDOWS, CROPS, SCORES = "features of its windows", "features of its ambiguous regions", "scores"
Value = TypeVar("Value")


def finite_rows(values: Float[Tensor, "rows *columns"]) -> Bool[Tensor, " rows"]:
    """Say of each row of unit features whether it holds numbers.

    One sum is enough: a single value that is not finite makes it so. Features too large for their norm come out of the
    normalization as zeros.
    """
    sums = values.square().flatten(1).sum(1)
    return sums.isfinite() & (sums > 0)


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
