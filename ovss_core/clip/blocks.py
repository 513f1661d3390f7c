"""One transformer block of an open_clip tower, taken apart into the pieces that dense heads rearrange."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import QuickGELU
from torch import Tensor

from ovss_core.kernels.attention import attend_with_mean
from ovss_core.kernels.norms import add_norm, layer_norm
from ovss_core.kernels.products import quick_gelu_product

QUICK_GELU_SLOPE = 1.702


@dataclass
class Stream:
    """The residual stream between two blocks.

    Attributes:
        tokens: Without what is pending.
        pending: What has still to be added.
    """

    tokens: Float[Tensor, "windows tokens width"]
    pending: Float[Tensor, "windows tokens width"] | None = None

    def joined(self) -> Float[Tensor, "windows tokens width"]:
        """Add what is pending, and return the tokens."""
        if self.pending is not None:
            self.tokens, self.pending = self.tokens + self.pending, None
        return self.tokens


@dataclass
class KeptAttention:
    """What is wanted of a block's attention.

    Attributes:
        whole: Keep the head-mean map.
        total: The patches' part of the head-mean map is added to it, in place.
        mean: The head-mean map, once the block has run.
        keys: Keep the keys.
        key: The keys, once the block has run; queries and values are let go.
        by_head: Each head's map is added to it, in place.
    """

    whole: bool
    total: Float[Tensor, "windows patches patches"] | None = None
    mean: Float[Tensor, "windows tokens tokens"] | None = None
    keys: bool = False
    key: Float[Tensor, "windows heads tokens depth"] | None = None
    by_head: Float[Tensor, "windows heads tokens tokens"] | None = None


class TransformerBlock:
    """A pre-norm residual attention block, by its parts.

    Args:
        block: An `open_clip.transformer.ResidualAttentionBlock`.
    """

    def __init__(self, block: Any) -> None:
        self._block = block
        self._attention = block.attn
        self.heads: int = block.attn.num_heads
        self.scale: float = (block.attn.embed_dim // self.heads) ** -0.5
        self._scaled_bias: tuple[object, Tensor] | None = None

    @property
    def scales_layers(self) -> bool:
        """Whether the block scales its branches' channels before they are added (LayerScale)."""
        return not isinstance(self._block.ls_1, torch.nn.Identity)

    @property
    def output_bias(self) -> Float[Tensor, " width"]:
        """Bias of the attention's output projection."""
        bias: Tensor = self._attention.out_proj.bias
        return bias

    def query_key_value(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> tuple[Float[Tensor, "windows heads tokens depth"], ...]:
        """Return q, k and v of ln_1(tokens), each [windows, heads, tokens, depth]."""
        return self._split(self.normalize(tokens))

    def _split(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed = F.linear(normed, self._attention.in_proj_weight, self._attention.in_proj_bias)
        split = packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return split[0], split[1], split[2]

    def value(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> Float[Tensor, "windows heads tokens depth"]:
        """Return v of ln_1(tokens) alone."""
        width = tokens.shape[-1]
        weight, bias = self._attention.in_proj_weight[2 * width :], self._attention.in_proj_bias[2 * width :]
        packed = F.linear(self.normalize(tokens), weight, bias)
        split: Tensor = packed.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split

    def normalize(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> Float[Tensor, "windows tokens width"]:
        """Return ln_1(tokens)."""
        return layer_norm(tokens, self._block.ln_1)

    def output(
        self, attended: Float[Tensor, "windows heads tokens depth"]
    ) -> Float[Tensor, "windows tokens width"]:
        """Join the heads and apply the output projection (and layer scale where the tower has one)."""
        projected: Tensor = self._block.ls_1(self._attention.out_proj(attended.transpose(1, 2).flatten(2)))
        return projected

    def feed_forward(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> Float[Tensor, "windows tokens width"]:
        """Return mlp(ln_2(tokens)), without the residual."""
        return self._network(layer_norm(tokens, self._block.ln_2))

    def _network(self, normed: Tensor) -> Tensor:
        network = self._block.mlp
        if not isinstance(network.gelu, QuickGELU):
            made = network(normed)
        else:
            hidden = quick_gelu_product(normed.flatten(0, 1), network.c_fc.weight, network.c_fc.bias)
            if hidden is None:
                made = _quick_network(network, normed, self._bias_of(network.c_fc.bias))
            else:
                made = torch.addmm(network.c_proj.bias, hidden, network.c_proj.weight.mT).view_as(normed)
        result: Tensor = self._block.ls_2(made)
        return result

    @property
    def quick_gelu_weight(self) -> Float[Tensor, "hidden width"] | None:
        """Weights of the product that QuickGELU follows; None where another function follows."""
        network = getattr(self._block, "mlp", None)
        return network.c_fc.weight if network is not None and isinstance(network.gelu, QuickGELU) else None

    def _bias_of(self, bias: Tensor) -> Tensor:
        """Return a bias times QuickGELU's slope; made once, as a launch on a GPU costs more than the few numbers."""
        if bias.requires_grad and torch.is_grad_enabled():
            return bias * QUICK_GELU_SLOPE
        version = bias.data_ptr(), None if bias.is_inference() else bias._version, bias.device, bias.dtype
        if self._scaled_bias is None or self._scaled_bias[0] != version:
            self._scaled_bias = version, bias.detach() * QUICK_GELU_SLOPE
        return self._scaled_bias[1]

    def forward(self, tokens: Float[Tensor, "windows tokens width"]) -> Float[Tensor, "windows tokens width"]:
        """Run the block as trained; no attention map is materialized."""
        return self.advance(Stream(tokens)).joined()

    def forward_normed(
        self, tokens: Float[Tensor, "windows tokens width"], normed: Float[Tensor, "windows tokens width"]
    ) -> Float[Tensor, "windows tokens width"]:
        """Run the block on tokens whose ln_1 is given, so that the output can be differentiated by it."""
        attended = tokens + self.output(F.scaled_dot_product_attention(*self._split(normed)))
        return attended + self.feed_forward(attended)

    def forward_with_attention(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> tuple[Float[Tensor, "windows tokens width"], Float[Tensor, "windows tokens tokens"]]:
        """Run the block and return its head-mean attention [windows, tokens, tokens] in float32 too."""
        kept = KeptAttention(whole=True)
        output = self.advance(Stream(tokens), kept).joined()
        assert kept.mean is not None
        return output, kept.mean

    def advance(
        self, stream: "Stream", kept: "KeptAttention | None" = None, total: Tensor | None = None
    ) -> "Stream":
        """Run the block, and leave its last sum to whoever goes on: the next block's layer norm takes it along.

        Args:
            stream: What enters; afterwards `stream.tokens` is complete.
            kept: Takes what is wanted of the block's attention; None forms no map.
            total: What enters is added to it, in place.
        """
        stream.tokens, normed = add_norm(stream.tokens, stream.pending, self._block.ln_1, total)
        stream.pending = None
        query, key, value = self._split(normed)
        attended = self._attend(query, key, value, kept)
        tokens, normed = add_norm(stream.tokens, self.output(attended), self._block.ln_2)
        return Stream(tokens, self._network(normed))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, kept: KeptAttention | None) -> Tensor:
        """Attend in the cheapest way that leaves what is wanted; without a map by fused attention."""
        if kept is not None and kept.keys:
            kept.key = key.clone(memory_format=torch.contiguous_format)
        if kept is not None and kept.by_head is not None:
            weights = (query @ (key * self.scale).mT).softmax(-1, dtype=torch.float32)
            kept.by_head += weights
            if kept.whole or kept.total is not None:
                kept.mean = weights.mean(1)
                if kept.total is not None:
                    first = kept.mean.shape[1] - kept.total.shape[1]
                    kept.total += kept.mean[:, first:, first:]
            by_head: Tensor = weights.to(value.dtype) @ value
            return by_head
        if kept is None or not (kept.whole or kept.total is not None):
            return F.scaled_dot_product_attention(query, key, value)
        attended, kept.mean = attend_with_mean(query, key, value, self.scale, kept.total, kept.whole)
        return attended

    def class_token(self, tokens: Float[Tensor, "windows tokens width"]) -> Float[Tensor, "windows 1 width"]:
        """Run the block for the class token alone; the others serve as keys and values."""
        query, key, value = self.query_key_value(tokens)
        first = tokens[:, :1] + self.output(F.scaled_dot_product_attention(query[:, :, :1], key, value))
        return first + self.feed_forward(first)


def _quick_network(
    network: Any, tokens: Float[Tensor, "windows tokens width"], scaled_bias: Float[Tensor, " hidden"]
) -> Tensor:
    """Run a feed-forward network with QuickGELU, x sigmoid(a x), in one pass over its widest tensor instead of three.

    The function is silu(a x) / a, and both factors go into the matrix products, which scale for nothing.
    """
    inner, outer = network.c_fc, network.c_proj
    slope = QUICK_GELU_SLOPE
    hidden = torch.addmm(scaled_bias, tokens.flatten(0, 1), inner.weight.mT, alpha=slope)
    hidden = F.silu(hidden, inplace=True)
    result = torch.addmm(outer.bias, hidden, outer.weight.mT, alpha=1 / slope)
    return result.view_as(tokens)
