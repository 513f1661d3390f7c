"""Captions that name what a label map shows."""

import random

import numpy as np

from pipelines.demonstration.words import CLASS_NAMES, phrases_of

_FRAMES = (
    "{}",
    "a picture of {}",
    "a scene with {}",
    "a drawing of {}",
    "{} in a picture book",
    "a photo of {}",
    "this shows {}",
)


def class_shares(labels: np.ndarray) -> np.ndarray:
    """Return each class's share of the pixels of a uint8 label map, float32 [classes], summing to 1."""
    counts = np.bincount(labels.ravel(), minlength=len(CLASS_NAMES)).astype(np.float32)
    shares: np.ndarray = counts / counts.sum()
    return shares


def describe(
    shares: np.ndarray, rng: random.Random, most: int = 5, least_share: float = 0.0, synonyms: bool = True
) -> str:
    """Write a caption that names the classes of a picture, the largest first.

    Args:
        shares: Each class's share of the pixels, [classes].
        rng: Where wording comes from.
        most: At most this many classes are named.
        least_share: Smaller ones go unnamed (the largest class never does).
        synonyms: Whether another phrase may stand for a class's name.
    """
    order = [int(index) for index in np.argsort(-shares, kind="stable") if shares[index] > 0]
    named = [index for rank, index in enumerate(order) if rank == 0 or shares[index] >= least_share][:most]
    words = []
    for index in named:
        name = CLASS_NAMES[index]
        words.append(rng.choice(phrases_of(name)) if synonyms and rng.random() < 0.3 else name)
    phrase = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return rng.choice(_FRAMES).format(phrase)
