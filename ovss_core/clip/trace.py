"""What a dense head wants from the blocks below it, and what it gets."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovss_core.clip.positions import Resampling
from ovss_core.errors import ConfigError

ProxyVectors = Literal["tokens", "query_plus_key"]
"""What a second tower can give of each patch: its tokens after the final norm, or q + k of its last block."""


@dataclass(frozen=True)
class ProxyFeatures:
    """What a second tower made of the windows.

    Attributes:
        grid: Rows and columns of its patches, n = rows * columns.
        vectors: The vectors that were asked for [windows, n, width], row by row, not normalized.
    """

    grid: tuple[int, int]
    vectors: dict[ProxyVectors, Float[Tensor, "windows patches width"]]


@dataclass(frozen=True)
class WindowRegions:
    """Which region each patch of the windows lies in, on the grid that the head's features lie on.

    Attributes:
        ids: 0 where a patch lies in none, else the number of its region, counted in each window anew.
        count: Regions of the window that has the most.
    """

    ids: Int[Tensor, "windows patches"]
    count: int


@runtime_checkable
class BlockObserver(Protocol):
    """A method's part in the tower's own work: it sees blocks' attention, and may change the tokens that go on.

    Observers that are equal do the same.
    """

    def begin(self) -> Any:
        """Return what is kept of one trace; it becomes `EncoderTrace.observed`."""

    def wants(self, layer: int) -> bool:
        """Say whether block `layer` is observed."""

    def after_block(
        self,
        observed: Any,
        layer: int,
        tokens: Float[Tensor, "windows tokens width"],
        attention: Float[Tensor, "windows tokens tokens"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "windows tokens width"]:
        """Look at a block's output and head-mean attention; return the tokens that the next block gets."""


@runtime_checkable
class TokenRepair(Protocol):
    """Changes what every block gives before the next one sees it, from the tokens alone; those that are equal do the same."""

    def after_block(
        self, tokens: Float[Tensor, "windows tokens width"], grid: tuple[int, int]
    ) -> Float[Tensor, "windows tokens width"]:
        """Return the tokens that go on; the class token is first."""


@dataclass(frozen=True)
class TraceRequest:
    """Which intermediate results of blocks 1 to L-1 to keep; everything else is never stored.

    Attributes:
        hidden: Blocks (from 1; 0 is the embedding) whose output tokens are kept.
        hidden_sum: Blocks whose outputs are summed into one tensor.
        attention_statistics: Blocks whose head-mean class row and diagonal are kept.
        mean_attention: Keep the mean over blocks 1 to L-1 of the head-mean patch-patch attention.
        observer: Takes part between blocks; None lets them run as trained.
        resampling: How positions are resampled off the base grid.
        repair: Changes each block's output, after the observer; None leaves it.
        keys: Blocks whose keys are kept.
        head_attention_sum: Keep the sum over blocks 1 to L-1 of each head's attention, class token included.
        proxy: Which vectors a second tower is asked for; none where a head needs no such tower.
    """

    hidden: frozenset[int] = frozenset()
    hidden_sum: frozenset[int] = frozenset()
    attention_statistics: frozenset[int] = frozenset()
    mean_attention: bool = False
    observer: BlockObserver | None = None
    resampling: Resampling = "scale"
    repair: TokenRepair | None = None
    keys: frozenset[int] = frozenset()
    head_attention_sum: bool = False
    proxy: frozenset[ProxyVectors] = frozenset()

    def with_mean_attention(self) -> "TraceRequest":
        """Return this request with the mean attention that class purification needs."""
        return replace(self, mean_attention=True)

    @property
    def shared_part(self) -> tuple[object, ...]:
        """What two requests must agree on to be served by one trace."""
        return self.observer, self.resampling, self.repair


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
        keys=frozenset().union(*(request.keys for request in wanted)),
        head_attention_sum=any(request.head_attention_sum for request in wanted),
        proxy=frozenset().union(*(request.proxy for request in wanted)),
    )


@dataclass
class EncoderTrace:
    """What blocks 1 to L-1 left for the heads; tokens have the class token first, if there is one; layers count from 1.

    Attributes:
        grid: Rows and columns of patches, N = rows * columns.
        tokens: Output of block L-1 [windows, 1+N, width] (repaired, where repair was asked for).
        hidden: Output tokens by block.
        hidden_sum: Sum of the asked blocks' output tokens, or None.
        class_attention: Head-mean attention of the class token to each patch, by block [windows, N].
        self_attention: Head-mean attention of each patch to itself, by block [windows, N].
        mean_attention: Mean over blocks of the head-mean patch-patch attention [windows, N, N], or None.
        observed: What the observer kept, or None.
        keys: Keys by block, each of the tokens that entered it.
        head_attention_sum: Sum over blocks of each head's attention in float32, or None.
        proxy: What the second tower made of the same windows, where it was asked for.
        regions: Which region each patch lies in, where a head may see inside regions only.
        prefix: Tokens in front of the patches: 1, or 0 in a tower without a class token.
    """

    grid: tuple[int, int]
    tokens: Float[Tensor, "windows tokens width"]
    hidden: dict[int, Float[Tensor, "windows tokens width"]] = field(default_factory=dict)
    hidden_sum: Float[Tensor, "windows tokens width"] | None = None
    class_attention: dict[int, Float[Tensor, "windows patches"]] = field(default_factory=dict)
    self_attention: dict[int, Float[Tensor, "windows patches"]] = field(default_factory=dict)
    mean_attention: Float[Tensor, "windows patches patches"] | None = None
    observed: Any = None
    keys: dict[int, Float[Tensor, "windows heads tokens depth"]] = field(default_factory=dict)
    head_attention_sum: Float[Tensor, "windows heads tokens tokens"] | None = None
    proxy: ProxyFeatures | None = None
    regions: WindowRegions | None = None
    prefix: int = 1

    def proxy_features(self) -> ProxyFeatures:
        """Return what the second tower made.

        Raises:
            ConfigError: Nothing was asked of it.
        """
        if self.proxy is None:
            raise ConfigError(
                "this head needs a second tower; give --proxy, such as vit_base_patch16_224.dino"
            )
        return self.proxy

    def patches_of(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> Float[Tensor, "windows patches width"]:
        """Return tokens without the class token."""
        return tokens[:, self.prefix :]

    def class_token_of(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> Float[Tensor, "windows 1 width"]:
        """Return the class token; zeros where the tower has none, so that what is added of it is nothing."""
        return tokens[:, :1] if self.prefix else torch.zeros_like(tokens[:, :1])
