"""How far refinement confirms a class: the score that FreeCP's redundancy purification keeps classes by.

A class that is in the image has a map that its window's attention leaves where it was; one that is not has scattered
responses which refinement moves. Released form: sum(P q) / (sum P + sum q), a test of confidence as much as of place.
Paper form: soft IoU of the map before and after refinement, the map before as it is or normalized.
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
    """Score classes by the soft IoU of P and q (FreeCP, paper), in [0, 1].

    An improbable class scores low even where refinement leaves its map in place; the published thresholds then tell
    words apart. A class whose refined map is empty scores 0.
    """
    union = probability.with_maps(torch.maximum(probability.maps, refined.maps)).total()
    shared = probability.with_maps(torch.minimum(probability.maps, refined.maps)).total()
    return torch.where(refined.total() > 0, shared / union.clamp_min(EPSILON), 0)


def normalized_consistency(probability: ClassMaps, refined: ClassMaps) -> Float[Tensor, "units places"]:
    """Score classes by the soft IoU of P, min-max normalized per class over the unit, and q.

    The score does not depend on how much probability the class got, so that it says where a class is but hardly
    whether.
    """
    return spatial_consistency(normalize_range(probability), refined)
