"""How far refinement confirms a class: the score that FreeCP's redundancy purification keeps classes by.

A class that is in the image has a map that its window's attention leaves where it was; one that is not has scattered
responses which refinement moves. Released form: sum(P q) / (sum P + sum q), a test of confidence as much as of place.
Paper form: soft IoU of the map before and after refinement.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ovss_core.class_purification.class_maps import ClassMaps
from ovss_core.class_purification.refinement import EPSILON, normalize_range


def released_score(probability: ClassMaps, refined: ClassMaps) -> Float[Tensor, "units places"]:
    """Score classes by sum(P q) / (sum P + sum q + 1e-8), sums over all windows of the unit.

    Never above `released_bound`.
    """
    overlap = probability.with_maps(probability.maps * refined.maps).total()
    return overlap / (probability.total() + refined.total() + EPSILON)


def released_bound(peaks: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Bound the released score of classes of peak probability m by m / (1 + m).

    It falls as more classes share the softmax, and saves refining a class that cannot be kept anyway.
    """
    return peaks / (1 + peaks)


def spatial_consistency(probability: ClassMaps, refined: ClassMaps) -> Float[Tensor, "units places"]:
    """Score classes by the soft IoU of their map before and after refinement (FreeCP, paper).

    Both are min-max normalized per class over the unit, so that the score, in [0, 1], does not depend on how much
    probability the class got. A class whose refined map is empty scores 0.
    """
    raw = normalize_range(probability)
    union = raw.with_maps(torch.maximum(raw.maps, refined.maps)).total()
    shared = raw.with_maps(torch.minimum(raw.maps, refined.maps)).total()
    return torch.where(refined.total() > 0, shared / union.clamp_min(EPSILON), 0)
