"""Where the line between present and absent classes lies, with no number per data set.

The published thresholds (0.05 to 0.15) are tuned per vocabulary because a class's score is bounded by
m / (1 + m), m its peak probability, and m falls as more classes share the softmax. What stays comparable
across vocabularies is a class's rank among classes known to be absent. So distractors, nouns that are in
hardly any photograph, are each scored in the same image as if that one noun were added to the vocabulary:
same softmax, same refinement, same score. Their scores sample the null hypothesis "this class is absent",
with the competition, clutter and contrast of this very image and vocabulary. On simulated features the
scores of distractors and of absent classes agree up to their 99th percentile from 60 to 1,200 classes.
"""

import re
from collections.abc import Iterable
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
    null_scores: Float[Tensor, "units distractors"], classes: int, ceiling: float
) -> Float[Tensor, " units"]:
    """Estimate the score that about one absent class of the whole vocabulary exceeds by chance.

    That is the 1 - 1/K quantile of the null, K the number of classes: one expected false class, whatever the
    vocabulary. Few distractors reach so far into the tail when K is large, so a straight line is fitted through
    the upper part of their normal quantile plot, on logit(score / ceiling), and read off at 1 - 1/K. The very
    top is left out of the fit: some distractor may be in the image after all. Where hardly any distractor has a
    region at all, the largest score below that top is the threshold.

    Args:
        null_scores: Redundancy score of each distractor in each unit, float64.
        classes: Classes of the vocabulary that compete.
        ceiling: What the score cannot exceed (released rule 1/2, spatial consistency 1).

    Returns:
        The threshold of each unit; 0 without distractors.
    """
    units, distractors = null_scores.shape
    if distractors == 0:
        return null_scores.new_zeros(units)
    first, last = int(TOP_SHARE * distractors), max(1, int(FITTED_SHARE * distractors))
    upper = null_scores.sort(1, descending=True).values[:, first:last]
    rank = torch.arange(first, last, dtype=torch.float64, device=upper.device)
    normal = torch.special.ndtri(1 - (rank + 0.5) / distractors)
    share = min(EXPECTED_FALSE_CLASSES / max(classes, 1), 0.5)
    target = torch.special.ndtri(torch.tensor(1 - share, dtype=torch.float64)).item()
    weight = (upper > LEAST_SCORE).double()
    points = weight.sum(1)
    score = torch.logit((upper / ceiling).clamp(LEAST_SCORE, 1 - LEAST_SCORE))
    center, level = ((weight * values).sum(1) / points.clamp_min(1) for values in (normal, score))
    offset = weight * (normal - center[:, None])
    slope = (offset * score).sum(1) / (offset * (normal - center[:, None])).sum(1).clamp_min(1e-9)
    line = level + slope.clamp_min(0) * (target - center)
    return torch.where(points >= LEAST_POINTS, ceiling * torch.sigmoid(line), upper[:, 0])


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
