"""What words from elsewhere score in an image: a line below which a class is no better confirmed than they are.

The published thresholds (0.05 to 0.15) are tuned per vocabulary because a class's score is bounded by
m / (1 + m), m its peak probability, and m falls as more classes share the softmax. What stays comparable
across vocabularies is a class's rank among classes known to be absent. So distractors, nouns that are in
hardly any photograph, are each scored in the same image as if that one noun were added to the vocabulary:
same softmax, same refinement, same score. Their scores sample the null hypothesis "this class is foreign to
the image", with the competition, clutter and contrast of this very image and vocabulary.

They do not sample "this class is absent". On simulated features, where every class is as foreign to every other, both
agree up to their 99th percentile from 60 to 1,200 classes; in drawn scenes 0.8 % of the distractors score above 0.05, and
28 % of the absent classes of the same scenes' vocabulary do, because the model takes a hill for a mountain but nothing
for an astrolabe. Figures, and what was tried against it, stand in docs/evaluation.md.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.class_purification.placement import Units

EXPECTED_FALSE_CLASSES = 1.0
TOP_SHARE = 0.03
FITTED_SHARE = 0.3
LEAST_SCORE = 1e-3
LEAST_POINTS = 5
LEAST_FILLED = 0.5


def load_distractors(exclude_phrases: Iterable[str] = ()) -> list[str]:
    """Read the shipped distractor nouns.

    Args:
        exclude_phrases: Phrases of the vocabulary; a distractor that shares a word with one of them
            (singular and plural count as the same) is left out.

    Returns:
        The remaining nouns in file order.
    """
    text = (resources.files(__package__) / "distractors.txt").read_text(encoding="utf-8")
    nouns = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    taken = {word for phrase in exclude_phrases for word in _words(phrase)}
    return [noun for noun in nouns if not _words(noun) & taken]


def _words(phrase: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall(r"[^\W\d_]+", phrase.lower())}


def null_threshold(
    null_scores: Float[Tensor, "units distractors"], classes: int, ceiling: float, floor: float
) -> Float[Tensor, " units"]:
    """Estimate the score that about one class would exceed if the whole vocabulary were foreign to the image.

    That is the 1 - 1/K quantile of the null, K the number of classes. When K is large, few distractors reach so far into
    the tail, so a straight line is fitted through the upper part of their normal quantile plot, on logit(score /
    ceiling), and read off at 1 - 1/K. The very top is left out of the fit: some distractor may be in the image after all.
    Where half of the fitted scores or more are of words without any region, a line through the rest would say nothing of
    the tail, and the threshold is the sample's own quantile, at least `floor`.

    Args:
        null_scores: Redundancy score of each distractor in each unit, float64.
        classes: Classes of the vocabulary that compete.
        ceiling: What the score cannot exceed (released rule 1/2, spatial consistency 1).
        floor: Least threshold where too few distractors have a score.

    Returns:
        The threshold of each unit; `floor` without distractors.
    """
    units, distractors = null_scores.shape
    if distractors == 0:
        return null_scores.new_full((units,), floor)
    fit = NullFit.of(distractors, classes)
    ranked = null_scores.sort(1, descending=True).values
    upper = ranked[:, fit.first : fit.last]
    normal = fit.normal(upper.device)
    weight = (upper > LEAST_SCORE).double()
    points = weight.sum(1)
    score = torch.logit((upper / ceiling).clamp(LEAST_SCORE, 1 - LEAST_SCORE))
    center, level = ((weight * values).sum(1) / points.clamp_min(1) for values in (normal, score))
    offset = weight * (normal - center[:, None])
    slope = (offset * score).sum(1) / (offset * (normal - center[:, None])).sum(1).clamp_min(1e-9)
    line = level + slope.clamp_min(0) * (fit.target - center)
    own = ranked[:, fit.own].clamp_min(floor)
    return torch.where(points >= fit.enough, ceiling * torch.sigmoid(line), own)


@dataclass(frozen=True)
class NullFit:
    """What a threshold is fitted to, which follows from numbers alone.

    Attributes:
        distractors: How many there are.
        first, last: Ranks of the scores that the line goes through.
        target: Normal quantile that the threshold is.
        own: Rank that is the sample's own quantile.
        enough: Scores that a line is fitted through.
    """

    distractors: int
    first: int
    last: int
    target: float
    own: int
    enough: float

    @classmethod
    def of(cls, distractors: int, classes: int) -> "NullFit":
        """Plan the fit; see `null_threshold`."""
        first, last = int(TOP_SHARE * distractors), max(1, int(FITTED_SHARE * distractors))
        share = min(EXPECTED_FALSE_CLASSES / max(classes, 1), 0.5)
        target = torch.special.ndtri(torch.tensor(1 - share, dtype=torch.float64)).item()
        enough = float(max(LEAST_POINTS, LEAST_FILLED * (last - first)))
        return cls(distractors, first, last, target, int(share * distractors), enough)

    def normal(self, device: torch.device) -> Float[Tensor, " ranks"]:
        """Return the normal quantiles of the ranks, float64."""
        rank = torch.arange(self.first, self.last, dtype=torch.float64, device=device)
        quantiles: Tensor = torch.special.ndtri(1 - (rank + 0.5) / self.distractors)
        return quantiles


def most_likely(peaks: Float[Tensor, "units classes"], unit_images: Units) -> Bool[Tensor, "units classes"]:
    """Find the class with the largest probability in each image, which an image keeps if it loses all others.

    Args:
        peaks: Largest probability of each class in each unit; 0 for a class that may not be kept.
        unit_images: The units of each image.
    """
    best = unit_images.reduce(peaks.amax(1), "amax")[unit_images.index]
    return (peaks == best[:, None]) & (peaks > 0)


def keep_one(
    kept: Bool[Tensor, "units classes"], likely: Bool[Tensor, "units classes"], unit_images: Units
) -> Bool[Tensor, "units classes"]:
    """Give every image that kept nothing its most likely class back."""
    alive = unit_images.reduce(kept.any(1).int(), "amax")[unit_images.index] > 0
    return kept | (likely & ~alive[:, None])
