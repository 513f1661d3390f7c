"""From stitched scores to one class a pixel, strip by strip, so that memory is bounded at any image size."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovss_core.config import LabelConfig
from ovss_core.inference.stitching import Stitcher

STRIP_BUDGET = 1_000_000


@dataclass(frozen=True)
class Labels:
    """One class a pixel.

    Attributes:
        label_map: Class index of every pixel.
        confidence_sums: Sum of the winning scores over each class's pixels [classes], float64.
    """

    label_map: Int[Tensor, "height width"]
    confidence_sums: Float[Tensor, " classes"]


@dataclass(frozen=True)
class PhraseScores:
    """Scores of every phrase on the patch grids of one image, and whose phrases they are.

    Attributes:
        tiled: Cosines, windows side by side [phrases, grid height, grid width].
        phrase_class: Class of each phrase, ascending.
        classes: Number of classes of the vocabulary.
        background: Index of the background class, or None.
    """

    tiled: Float[Tensor, "phrases height width"]
    phrase_class: Int[Tensor, " phrases"]
    classes: int
    background: int | None


def label_by_probability(scores: PhraseScores, stitcher: Stitcher, config: LabelConfig) -> Labels:
    """Assign each pixel the class of its most probable phrase (SFP's evaluation rule).

    Probabilities are a softmax over all phrases of logit_scale * cosine; a class has its best phrase's. Classes
    (the background apart) whose share of the foreground's area is not above `min_area` lose their pixels to the
    next best class, unless no class would remain; pixels whose probability is below `min_probability` become background.

    Args:
        config: `logit_scale`, `min_area` and `min_probability` apply; with background "none" the background's
            phrases count in the softmax and never win.
    """
    scaled = PhraseScores(
        scores.tiled * config.logit_scale, scores.phrase_class, scores.classes, scores.background
    )
    background = scores.background if config.background != "none" else None
    excluded = scores.background if background is None and scores.background is not None else -1
    allowed = scores.phrase_class.ne(excluded)
    best = _best_phrases(scaled, stitcher, allowed)
    if config.min_area is not None:
        small = _small_classes(scores, best.label_map, config.min_area)
        if small.any():
            large = allowed & ~small[scores.phrase_class]
            best = _best_phrases(scaled, stitcher, large) if large.any() else best
    if config.min_probability > 0 and background is not None:
        best.label_map[best.probability < config.min_probability] = background
    sums = torch.zeros(scores.classes, dtype=torch.float64, device=scores.tiled.device)
    sums.index_add_(0, best.label_map.flatten().long(), best.probability.flatten().double())
    return Labels(best.label_map, sums)


@dataclass
class _BestPhrases:
    label_map: Tensor
    probability: Tensor


def _best_phrases(scaled: PhraseScores, stitcher: Stitcher, allowed: Tensor) -> _BestPhrases:
    """Find each pixel's best allowed class, and its probability among all phrases."""
    device = scaled.tiled.device
    label_map = torch.empty(stitcher.size, dtype=torch.int32, device=device)
    probability = torch.empty(stitcher.size, device=device)
    everything = bool(allowed.all())
    for rows in stitcher.strips(len(scaled.phrase_class), STRIP_BUDGET):
        logits = stitcher.stitch(scaled.tiled, rows)
        peak, phrase = logits.max(0)
        total = (logits - peak).exp_().sum(0)
        if not everything:
            allowed_peak, phrase = logits.masked_fill_(~allowed[:, None, None], -torch.inf).max(0)
            total = total * (peak - allowed_peak).exp_()
        label_map[rows] = scaled.phrase_class[phrase].int()
        probability[rows] = total.reciprocal_()
    return _BestPhrases(label_map, probability)


def _small_classes(scores: PhraseScores, label_map: Tensor, min_area: float) -> Tensor:
    """Say of each class whether its share of the foreground's area is not above `min_area`."""
    area = torch.bincount(label_map.flatten(), minlength=scores.classes).double()
    if scores.background is not None:
        area[scores.background] = 0
    small = area / area.sum().clamp_min(1) <= min_area
    if scores.background is not None:
        small[scores.background] = False
    return small


ScoreEdit = Callable[[Float[Tensor, "kept rows width"], int], Float[Tensor, "kept rows width"]]


def label_by_purified_maps(
    tiled: Float[Tensor, "kept height width"],
    kept: Int[Tensor, " kept"],
    classes: int,
    background: int | None,
    stitcher: Stitcher,
    edit: ScoreEdit | None = None,
) -> Labels:
    """Assign each pixel the kept class with the largest purified map (FreeCP's rule).

    Args:
        tiled: Purified maps, windows side by side.
        kept: Their class indices.
        classes: Number of classes of the vocabulary.
        background: Class that competes with score 1 - max over the maps and wins ties, or None for none.
        edit: Changes the scores of a strip of rows before they compete; gets the strip and its first row.

    Raises:
        ValueError: Nothing was kept and there is no background to fall back to.
    """
    device = tiled.device
    if len(kept) == 0:
        if background is None:
            raise ValueError("no class was kept and there is no background class")
        label_map = torch.full(stitcher.size, background, dtype=torch.int32, device=device)
        sums = torch.zeros(classes, dtype=torch.float64, device=device)
        sums[background] = label_map.numel()
        return Labels(label_map, sums)
    label_map = torch.empty(stitcher.size, dtype=torch.int32, device=device)
    sums = torch.zeros(classes, dtype=torch.float64, device=device)
    for rows in stitcher.strips(len(kept), STRIP_BUDGET):
        scores = stitcher.stitch(tiled, rows)
        if edit is not None:
            scores = edit(scores, rows.start)
        score, winner = scores.max(0)
        label = kept[winner].int()
        if background is not None:
            is_background = 1 - score >= score
            label = torch.where(is_background, background, label)
            score = torch.where(is_background, 1 - score, score)
        label_map[rows] = label
        sums.index_add_(0, label.flatten().long(), score.flatten().double())
    return Labels(label_map, sums)
