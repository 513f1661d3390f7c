"""Where the line between present and absent classes lies, with no number per data set.

The published thresholds (0.05 to 0.15) are tuned per vocabulary because a class's score is bounded by
m / (1 + m), m its peak probability, and m falls as more classes share the softmax. What stays comparable
across vocabularies is a class's rank among classes known to be absent. So distractors, nouns that are in
hardly any photograph, are each scored in the same image as if that one noun were added to the vocabulary:
same softmax, same refinement, same score. Their scores sample the null hypothesis "this class is absent",
with the competition, clutter and contrast of this very image and vocabulary.
"""

import re
from collections.abc import Iterable
from importlib import resources

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

EXPECTED_FALSE_CLASSES = 1.0
TAIL_SHARE = 0.2


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


def null_threshold(null_scores: Float[Tensor, "distractors units"], classes: int) -> Float[Tensor, " units"]:
    """Estimate the score that about one absent class of the whole vocabulary exceeds by chance.

    That is the 1 - 1/K quantile of the null, K the number of classes: one constant (one expected false
    class an image) for every vocabulary. Few distractors reach so far into the tail for a large K, so the
    tail above the null's upper fifth is taken as exponential (peaks over threshold, Pickands 1975). Its
    scale is the median excess / ln 2 instead of the mean, so that a few distractors that are in the image
    after all do not raise the line.

    Args:
        null_scores: Redundancy score of each distractor in each unit.
        classes: Classes of the vocabulary that compete.

    Returns:
        The threshold of each unit; 0 without distractors.
    """
    distractors = len(null_scores)
    if distractors == 0:
        return null_scores.new_zeros(null_scores.shape[1])
    ranked = null_scores.sort(0, descending=True).values
    tail = max(1, round(TAIL_SHARE * distractors))
    start = ranked[min(tail, distractors - 1)]
    scale = (ranked[:tail] - start).median(0).values / torch.tensor(2.0).log()
    beyond = torch.tensor(tail / distractors * max(classes, 1) / EXPECTED_FALSE_CLASSES).log().clamp_min(0)
    return start + scale * beyond


def most_likely(
    peaks: Float[Tensor, "classes units"], image: Int[Tensor, " units"], images: int
) -> Bool[Tensor, "classes units"]:
    """Find the class with the largest probability in each image, which an image keeps if it loses all others.

    Args:
        peaks: Largest probability of each class in each unit; 0 for a class that may not be kept.
        image: Image of each unit.
        images: Number of images.
    """
    best = peaks.new_zeros(images).scatter_reduce(0, image, peaks.amax(0), "amax")
    return (peaks == best[image]) & (peaks > 0)


def keep_one(
    kept: Bool[Tensor, "classes units"],
    likely: Bool[Tensor, "classes units"],
    image: Int[Tensor, " units"],
    images: int,
) -> Bool[Tensor, "classes units"]:
    """Give every image that kept nothing its most likely class back."""
    alive = torch.zeros(images, dtype=torch.bool, device=kept.device)
    alive.index_fill_(0, image[kept.any(0)], True)
    return kept | (likely & ~alive[image])
