"""Several heads over one pass through the image tower: which can share it, and what their features become.

The score of a word at a patch is the cosine of unit vectors, which is linear in the patch's: the mean of several heads'
scores is the score of the mean of their unit features, exactly, before stitching, softmax and purification. So whatever
follows works on one table of features, as for one head. The mean is not made a unit vector again: where heads point
apart it is shorter, and its scores are nearer to each other, as a mean of scores is.
"""

from collections.abc import Sequence
from itertools import combinations

from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.trace import TraceRequest, merge_requests
from ovss_core.config import SegmenterConfig
from ovss_core.dense_heads import build_head
from ovss_core.dense_heads.base import DenseHead, HeadOptions
from ovss_core.dense_heads.scoring import as_scorer
from ovss_core.errors import ConfigError


def build_heads(config: SegmenterConfig) -> tuple[DenseHead, ...]:
    """Build the heads that a configuration names, in its order.

    Raises:
        ConfigError: A head is unknown.
    """
    return tuple(
        build_head(
            host,
            HeadOptions(
                not config.purification.own_scores,
                config.head_settings(host),
                config.model,
                scoped=config.regions.scope,
            ),
        )
        for host in config.hosts
    )


def request_together(heads: Sequence[DenseHead], depth: int) -> TraceRequest:
    """Return what one pass through a tower of `depth` blocks must keep for all heads.

    Raises:
        ConfigError: One of several heads scores words by a rule of its own, heads lie on different patches, want other
            blocks below them, or one is named twice.
    """
    for one, other in combinations(heads, 2):
        if one.name == other.name:
            raise ConfigError(f"host {one.name!r} is named twice; name each host once")
        if one.needs_proxy != other.needs_proxy:
            near, far = (one, other) if one.needs_proxy else (other, one)
            raise ConfigError(
                f"host {near.name!r} has its features on the patches of a second tower, {far.name!r} on CLIP's; join hosts "
                "of one kind"
            )
    for head in heads if len(heads) > 1 else ():
        if as_scorer(head):
            raise ConfigError(
                f"host {head.name!r} scores words by a rule of its own with these settings, which a mean of cosines has no "
                "place for; name it alone"
            )
    requests = [head.request(depth) for head in heads]
    for (one, asked), (other, wanted) in combinations(zip(heads, requests, strict=True), 2):
        try:
            merge_requests([asked, wanted])
        except ConfigError:
            raise ConfigError(
                f"hosts {one.name!r} and {other.name!r} change the blocks below them in different ways with "
                "these settings, so that no one pass through the image tower serves both; join others"
            ) from None
    return merge_requests(requests)


def mean_features(
    of_heads: Sequence[Float[Tensor, "windows patches channels"]],
) -> Float[Tensor, "windows patches channels"]:
    """Return the mean of the heads' unit features: a vector of length 1 at most, whose cosines are the mean cosines."""
    total = of_heads[0]
    for features in of_heads[1:]:
        total = total + features
    return total / len(of_heads) if len(of_heads) > 1 else total
