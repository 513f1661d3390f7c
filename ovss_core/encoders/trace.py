"""What a dense head wants from the blocks below it, and what it gets."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.encoders.positional import Resampling
from ovss_core.errors import ConfigError


@dataclass(frozen=True)
class TraceRequest:
    """Which intermediate results of blocks 1 to L-1 to keep; everything else is never stored.

    Attributes:
        hidden: Blocks (from 1; 0 is the embedding) whose output tokens are kept.
        hidden_sum: Blocks whose outputs are summed into one tensor.
        attention_statistics: Blocks whose head-mean class row and diagonal are kept.
        mean_attention: Keep the mean over blocks 1 to L-1 of the head-mean patch-patch attention.
        outlier_factor: A patch is a block's outlier when its self attention is below this factor times its
            class attention (paper SOM).
        outlier_limit: At most so many outliers a block, those with the largest class attention; None keeps all.
        repair_outliers: Repair each block's outliers before the next block sees them; otherwise the blocks
            run unmodified.
        filtered_attention_from: Paper HAI: keep the sum, from this block to L-1, of the head-mean patch-patch
            attention with the columns of each block's outliers zeroed; None keeps none.
        resampling: How positions are resampled off the base grid.
    """

    hidden: frozenset[int] = frozenset()
    hidden_sum: frozenset[int] = frozenset()
    attention_statistics: frozenset[int] = frozenset()
    mean_attention: bool = False
    outlier_factor: float = 1.0
    outlier_limit: int | None = None
    repair_outliers: bool = False
    filtered_attention_from: int | None = None
    resampling: Resampling = "scale"

    def with_mean_attention(self) -> "TraceRequest":
        """Return this request with the mean attention that class purification needs."""
        return replace(self, mean_attention=True)

    @property
    def shared_part(self) -> tuple[object, ...]:
        """What two requests must agree on to be served by one trace."""
        outliers = self.outlier_factor, self.outlier_limit, self.repair_outliers
        return *outliers, self.filtered_attention_from, self.resampling


def merge_requests(requests: Iterable[TraceRequest]) -> TraceRequest:
    """Unite requests into one that serves them all.

    Raises:
        ConfigError: The requests modify the blocks differently or sum different blocks.
    """
    wanted = list(requests)
    sums = {request.hidden_sum for request in wanted if request.hidden_sum}
    if any(request.shared_part != wanted[0].shared_part for request in wanted) or len(sums) > 1:
        raise ConfigError("these heads need different blocks below them; trace them one by one")
    return replace(
        wanted[0],
        hidden=frozenset().union(*(request.hidden for request in wanted)),
        hidden_sum=next(iter(sums), frozenset()),
        attention_statistics=frozenset().union(*(request.attention_statistics for request in wanted)),
        mean_attention=any(request.mean_attention for request in wanted),
    )


@dataclass
class EncoderTrace:
    """What blocks 1 to L-1 left for the heads; tokens have the class token first, layers count from 1.

    Attributes:
        grid: Rows and columns of patches, N = rows * columns.
        tokens: Output of block L-1 [windows, 1+N, width] (repaired, where repair was asked for).
        hidden: Output tokens by block.
        hidden_sum: Sum of the asked blocks' output tokens, or None.
        class_attention: Head-mean attention of the class token to each patch, by block [windows, N].
        self_attention: Head-mean attention of each patch to itself, by block [windows, N].
        mean_attention: Mean over blocks of the head-mean patch-patch attention [windows, N, N], or None.
        filtered_attention: Sum over blocks of the outlier-filtered attention [windows, N, N], or None.
        outliers: Patches found by the repair rule, by block [windows, N].
    """

    grid: tuple[int, int]
    tokens: Float[Tensor, "windows tokens width"]
    hidden: dict[int, Float[Tensor, "windows tokens width"]] = field(default_factory=dict)
    hidden_sum: Float[Tensor, "windows tokens width"] | None = None
    class_attention: dict[int, Float[Tensor, "windows patches"]] = field(default_factory=dict)
    self_attention: dict[int, Float[Tensor, "windows patches"]] = field(default_factory=dict)
    mean_attention: Float[Tensor, "windows patches patches"] | None = None
    filtered_attention: Float[Tensor, "windows patches patches"] | None = None
    outliers: dict[int, Bool[Tensor, "windows patches"]] = field(default_factory=dict)
