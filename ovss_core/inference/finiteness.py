"""What becomes of an image that the model turned into something else than numbers: an error of its own."""

from collections.abc import Sequence
from itertools import islice
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from ovss_core.errors import ImageError

WINDOWS, CROPS, SCORES = "features of its windows", "features of its ambiguous regions", "scores"
Value = TypeVar("Value")


def finite_images(
    features: Float[Tensor, "windows patches features"],
    attention: Float[Tensor, "windows patches patches"] | None,
    counts: Sequence[int],
) -> list[bool]:
    """Say of each image whether its windows' features and attention are numbers.

    One sum over each is enough: a single value that is not finite makes it so. Features too large for their norm
    come out of the normalisation as zeros.
    """
    sums = features.square().sum((1, 2))
    sound = sums.isfinite() & (sums > 0)
    if attention is not None:
        sound &= attention.sum((1, 2)).isfinite()
    windows = iter(sound.tolist())
    return [all(list(islice(windows, count))) for count in counts]


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
