"""From stitched scores to one class a pixel, for a batch of images: FreeCP's rule, and the one that SFP is evaluated by.

Both go through the rows strip by strip (`label_strips`), and on a GPU by a kernel that never writes scores of pixels.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.class_maps import NOBODY
from ovss_core.class_purification.winners import LabelEdits
from ovss_core.config import LabelConfig
from ovss_core.engine.label_strips import Collector, Labels, device_strips, rename, strips_of
from ovss_core.engine.refined import RefinedScores
from ovss_core.images.stitch import Stitcher
from ovss_core.kernels import use_kernel

_ABSENT = -1e4
"""Score of a phrase that an image does not have: so low that it has no share in a softmax, and yet a number to stitch."""


def label_by_purified_maps(
    tiled: Float[Tensor, "images places height width"],
    place_classes: Int[Tensor, "images places"],
    classes: int,
    background: int | None,
    stitcher: Stitcher,
    edits: LabelEdits | None = None,
    config: LabelConfig | None = None,
    refined: RefinedScores | None = None,
) -> Labels:
    """Assign each pixel the kept class with the largest purified map (FreeCP's rule).

    Args:
        tiled: Purified maps, windows side by side.
        place_classes: Class of each map; `NOBODY` in unused places.
        classes: Number of classes of the vocabulary.
        background: Class that competes with score 1 - max over the maps and wins ties; an image that keeps nothing
            is all background. None: every image must keep a class.
        stitcher: Of the same images.
        edits: Boxes in which a group's members are renamed to its winner.
        config: `confidence` and `min_confidence` apply; None does without.
        refined: What takes the place of the stitched maps; of one image, all of whose places are used.
    """
    collector = Collector(stitcher, classes, tiled.device, config)
    if refined is None and use_kernel(tiled):
        return _purified_on_device(tiled, place_classes, background, stitcher, edits, collector)
    used = place_classes != NOBODY
    tiled = tiled.masked_fill(~used[:, :, None, None], -1)  # below any score, so that nobody never wins
    classes_by_place = place_classes.clamp_min(0)
    for rows in strips_of(stitcher, tiled, refined):
        others = second = None
        if refined is not None:
            confidence, place = refined.largest()
            if collector.ranks:  # members of a group that was settled stay rivals here
                places = torch.arange(tiled.shape[1], device=place.device)
                second = refined.largest_of_others(place, places, used[0])
        else:
            scores = stitcher.stitch(tiled, rows)
            confidence, place = scores.max(1)
            if collector.ranks:
                others = scores.scatter_(1, place[:, None], -1)
        confidence.clamp_min_(0)
        if edits is not None:
            rename(place, confidence > 0, edits, rows, others)
        if others is not None:
            second = others.amax(1)
        if second is not None:
            second.clamp_min_(0)
        label = classes_by_place.gather(1, place.flatten(1)).view_as(place)
        if background is not None:
            is_background = 1 - confidence >= confidence
            label = torch.where(is_background, background, label)
            if second is not None:
                second = torch.where(is_background, confidence, torch.maximum(second, 1 - confidence))
            confidence = torch.where(is_background, 1 - confidence, confidence)
        collector.add(rows, label, confidence, second)
    return collector.labels()


def _purified_on_device(
    tiled: Tensor,
    place_classes: Tensor,
    background: int | None,
    stitcher: Stitcher,
    edits: LabelEdits | None,
    collector: Collector,
) -> Labels:
    """Do as `label_by_purified_maps`; of a map of pixels a class nothing is written."""
    from ovss_core.kernels.labels_triton import launch_purified

    tables = (edits.boxes, edits.places, edits.members, edits.counts) if edits and len(edits.bounds) else None
    for rows in device_strips(stitcher, tiled):
        label, score, second = collector.tables(rows)
        launch_purified(
            stitcher.stitch_rows(tiled, rows),
            stitcher.shares,
            place_classes,
            stitcher.areas,
            tables,
            rows.start,
            background,
            label,
            score,
            second,
        )
        collector.add(rows, label, score, second)
    return collector.labels()


@dataclass(frozen=True)
class PhraseRule:
    """How phrases stand for classes.

    Attributes:
        phrase_class: Class of each phrase, ascending; where images have phrases of their own, one row an image, with
            `NOBODY` behind the last.
        classes: Number of classes of the vocabulary.
        background: Index of the background class, or None.
        most: Phrases of the class that has most; None counts them.
    """

    phrase_class: Int[Tensor, "*images phrases"]
    classes: int
    background: int | None
    most: int | None = None

    @cached_property
    def spans(self) -> tuple[Int[Tensor, "*images classes"], Int[Tensor, "*images classes"], int]:
        """First and last phrase of each class, and the phrases of the one that has most; made once."""
        if self.phrase_class.dim() == 1:
            counts = torch.bincount(self.phrase_class, minlength=self.classes)
        else:
            column = torch.where(self.phrase_class == NOBODY, self.classes, self.phrase_class)
            counts = column.new_zeros(len(column), self.classes + 1)
            counts = counts.scatter_add_(1, column, torch.ones_like(column))[:, : self.classes]
        ends = counts.cumsum(-1)
        return ends - counts, ends - 1, int(counts.max()) if self.most is None else self.most

    def of_images(self, phrase_class: Int[Tensor, "images phrases"]) -> "PhraseRule":
        """Return the rule for images that have some of the phrases each, named by their classes."""
        return replace(self, phrase_class=phrase_class, most=self.spans[2])

    @property
    def there(self) -> Bool[Tensor, "*images phrases"]:
        """Which phrases there are."""
        return self.phrase_class != NOBODY

    def class_of(self, phrase: Int[Tensor, "images height width"]) -> Int[Tensor, "images height width"]:
        """Look up the classes of phrases."""
        return _look_up(self.phrase_class, phrase)

    def by_phrase(self, table: Bool[Tensor, "images classes"]) -> Bool[Tensor, "images phrases"]:
        """Repeat what is known of each class for its phrases; for nobody's it means nothing."""
        phrases = self.phrase_class.clamp_min(0)
        return table[:, phrases] if phrases.dim() == 1 else table.gather(1, phrases)


def _look_up(table: Tensor, index: Int[Tensor, "images height width"]) -> Tensor:
    """Look up an index of each pixel in one table for all images, or in a row for each."""
    if table.dim() == 1:
        return table[index]
    return table.gather(1, index.flatten(1)).view_as(index)


def label_by_probability(
    tiled: Float[Tensor, "images phrases height width"],
    rule: PhraseRule,
    stitcher: Stitcher,
    config: LabelConfig,
    refined: RefinedScores | None = None,
    edits: LabelEdits | None = None,
) -> Labels:
    """Assign each pixel the class of its most probable phrase (SFP's evaluation rule).

    Probabilities are a softmax over all phrases of logit_scale * cosine; a class has its best phrase's. Classes (the
    background apart) whose share of the foreground's area is not above `min_area` lose their pixels to the next best
    class, unless no class would remain; pixels whose probability is below `min_probability` become background.

    Args:
        tiled: Cosines with every phrase, windows side by side.
        rule: Whose phrases they are.
        stitcher: Of the same images.
        config: `logit_scale`, `min_area` and `min_probability` apply; with background "none" the background's phrases
            count in the softmax and never win. `confidence` and `min_confidence` apply.
        refined: What takes the place of the stitched cosines; of one image.
        edits: Boxes in which a group's members are renamed to its winner; places are phrases.
    """
    never = rule.background if config.background == "none" else None
    allowed = rule.there.expand(len(tiled), -1)
    if rule.phrase_class.dim() > 1 and refined is None:
        tiled = tiled.masked_fill(~rule.there[:, :, None, None], _ABSENT)
    if never is not None:
        allowed = allowed & (rule.phrase_class != never)
    floor = config.min_probability if config.background != "none" and rule.background is not None else 0.0
    everyone = never is None
    if config.min_area is not None:
        # a second pass: how large a class is shows only when every pixel has been labelled once
        plain = replace(config, confidence="none", min_confidence=0.0)
        first = _assign(tiled, rule, stitcher, allowed, everyone, 0.0, plain, refined, edits)
        large = rule.by_phrase(~_small_classes(first.pixels, rule.background, config.min_area))
        remaining = allowed & large
        allowed = torch.where(remaining.any(1, keepdim=True), remaining, allowed)
        everyone = False
        if edits is not None:  # a winner that is dropped takes nothing
            every = torch.arange(allowed.shape[1], device=allowed.device)
            stays = allowed.expand(len(edits.places), -1, -1).gather(2, edits.places)
            edits = replace(edits, places=torch.where(stays, edits.places, every))
    return _assign(tiled, rule, stitcher, allowed, everyone, floor, config, refined, edits)


def _assign(
    tiled: Tensor,
    rule: PhraseRule,
    stitcher: Stitcher,
    allowed: Bool[Tensor, "images phrases"],
    everyone: bool,
    floor: float,
    config: LabelConfig,
    refined: RefinedScores | None,
    edits: LabelEdits | None = None,
) -> Labels:
    """Give each pixel its best allowed class, and that class's probability among all phrases."""
    collector, scale = Collector(stitcher, rule.classes, tiled.device, config), float(config.logit_scale)
    if refined is None:
        tiled = tiled * scale
        # phrases of an image's own, and boxes among phrases, are only known to the plain form
        if edits is None and rule.phrase_class.dim() == 1 and use_kernel(tiled):
            return _probable_on_device(tiled, rule, stitcher, None if everyone else allowed, floor, collector)
    for rows in strips_of(stitcher, tiled, refined):
        if refined is not None:
            probability, phrase, best = refined.most_probable(scale, allowed[0])
        else:
            logits = stitcher.stitch(tiled, rows)
            probability, phrase, best = _most_probable(logits, allowed, everyone)
        if edits is not None:
            rivals = logits if collector.ranks and refined is None else None
            rename(phrase, None, edits, rows, rivals, -torch.inf)
        label = rule.class_of(phrase)
        second = None
        if collector.ranks:
            if refined is not None:
                owners = rule.phrase_class.reshape(-1)
                others = scale * refined.largest_of_others(label, owners, allowed[0])
            else:
                others = _without_class(logits, label, rule).amax(1)
            second = probability * (others - best).exp_()
        if floor > 0 and rule.background is not None:
            label = torch.where(probability < floor, rule.background, label)
        collector.add(rows, label, probability, second)
    return collector.labels()


def _probable_on_device(
    tiled: Tensor,
    rule: PhraseRule,
    stitcher: Stitcher,
    allowed: Tensor | None,
    floor: float,
    collector: Collector,
) -> Labels:
    """Do as `_assign`; of a map of pixels a phrase nothing is written."""
    from ovss_core.kernels.labels_triton import launch_probable

    for rows in device_strips(stitcher, tiled):
        label, score, second = collector.tables(rows)
        launch_probable(
            stitcher.stitch_rows(tiled, rows),
            stitcher.shares,
            rule.phrase_class,
            allowed,
            stitcher.areas,
            rows.start,
            floor,
            rule.background,
            label,
            score,
            second,
        )
        collector.add(rows, label, score, second)
    return collector.labels()


def _most_probable(
    logits: Float[Tensor, "images phrases height width"],
    allowed: Bool[Tensor, "images phrases"],
    everyone: bool,
) -> tuple[
    Float[Tensor, "images height width"],
    Int[Tensor, "images height width"],
    Float[Tensor, "images height width"],
]:
    """Return the probability of each pixel's best allowed phrase, that phrase, and its logit."""
    peak, phrase = logits.max(1)
    total = (logits - peak[:, None]).exp_().sum(1)
    best = peak
    if not everyone:
        best, phrase = logits.masked_fill_(~allowed[:, :, None, None], -torch.inf).max(1)
        total = total * (peak - best).exp_()
    return total.reciprocal_(), phrase, best


def _without_class(logits: Tensor, label: Tensor, rule: PhraseRule) -> Tensor:
    """Strike out, in place, the phrases of each pixel's class."""
    first, last, most = rule.spans
    first, last = _look_up(first, label), _look_up(last, label)
    for offset in range(most):
        logits.scatter_(1, torch.minimum(first + offset, last)[:, None], -torch.inf)
    return logits


def _small_classes(
    pixels: Int[Tensor, "images classes"], background: int | None, min_area: float
) -> Bool[Tensor, "images classes"]:
    """Say of each class whether its share of the foreground's area is not above `min_area`."""
    area = pixels.double()
    if background is not None:
        area[:, background] = 0
    small = area / area.sum(1, keepdim=True).clamp_min(1) <= min_area
    if background is not None:
        small[:, background] = False
    return small
