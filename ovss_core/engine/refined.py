"""The winner of each pixel among refined score maps, which come in blocks and may be too many to hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.refiners import Guide, Piece, Refiner, ScoreMaps

_HELD = 1 << 24
"""Numbers of an image's refined maps that are held for a second look at them, which saves refining them again."""


@dataclass(frozen=True)
class RefinedScores:
    """The refined score maps of one image.

    Attributes:
        refiner: What refines them.
        scores: The stitched maps.
        guide: The picture.
    """

    refiner: Refiner
    scores: ScoreMaps
    guide: Guide

    def largest(self) -> tuple[Float[Tensor, "1 height width"], Int[Tensor, "1 height width"]]:
        """Return each pixel's largest value and the map that has it, the first of equals."""
        best, place = self._empty(-torch.inf), self._empty(0.0).long()
        for piece in self._pieces():
            value, here = piece.values.max(0)
            area = piece.rows, piece.columns
            better = value > best[area]
            best[area] = torch.where(better, value, best[area])
            place[area] = torch.where(better, here + piece.maps.start, place[area])
        return best[None], place[None]

    def most_probable(
        self, scale: float, allowed: Bool[Tensor, " maps"]
    ) -> tuple[
        Float[Tensor, "1 height width"], Int[Tensor, "1 height width"], Float[Tensor, "1 height width"]
    ]:
        """Return the probability of each pixel's best allowed map, that map, and its score times `scale`.

        Args:
            scale: Factor on the scores before the softmax, in which all maps take part.
            allowed: The maps that may win; one at least.
        """
        best, place = self._empty(-torch.inf), self._empty(0.0).long()
        peak, total = self._empty(-torch.inf), self._empty(0.0)
        for piece in self._pieces():
            logits, area = piece.values * scale, (piece.rows, piece.columns)
            higher = torch.maximum(peak[area], logits.amax(0))
            total[area] = total[area] * (peak[area] - higher).exp_() + (logits - higher).exp_().sum(0)
            peak[area] = higher
            value, here = logits.masked_fill_(~allowed[piece.maps, None, None], -torch.inf).max(0)
            better = value > best[area]
            best[area] = torch.where(better, value, best[area])
            place[area] = torch.where(better, here + piece.maps.start, place[area])
        return (best - peak).exp_().div_(total)[None], place[None], best[None]

    def largest_of_others(
        self,
        owner: Int[Tensor, "1 height width"],
        owners: Int[Tensor, " maps"],
        allowed: Bool[Tensor, " maps"],
    ) -> Float[Tensor, "1 height width"]:
        """Return each pixel's largest value among the maps that are not its owner's; -inf where there is none.

        Args:
            owner: Whose maps a pixel leaves out.
            owners: Whose each map is.
            allowed: The maps that count at all.
        """
        best = self._empty(-torch.inf)
        for piece in self._pieces():
            area = piece.rows, piece.columns
            left_out = owners[piece.maps][:, None, None] == owner[0][area]
            left_out |= ~allowed[piece.maps, None, None]
            best[area] = torch.maximum(best[area], piece.values.masked_fill(left_out, -torch.inf).amax(0))
        return best[None]

    def _empty(self, value: float) -> Float[Tensor, "height width"]:
        return torch.full(self.scores.size, value, device=self.guide.pixels.device)

    def _pieces(self) -> Iterator[Piece]:
        return iter(self._held) if self._may_hold else self.refiner.refine(self.scores, self.guide)

    @property
    def _may_hold(self) -> bool:
        height, width = self.scores.size
        return len(self.scores) * height * width <= _HELD

    @cached_property
    def _held(self) -> list[Piece]:
        return list(self.refiner.refine(self.scores, self.guide))
