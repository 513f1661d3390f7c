"""One transformer block of an open_clip tower, taken apart into the pieces that dense heads rearrange."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import QuickGELU
from torch import Tensor

from ovss_core.kernels.attention import attend_with_mean

QUICK_GELU_SLOPE = 1.702


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

    def query_key_value(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> tuple[Float[Tensor, "windows heads tokens depth"], ...]:
        """Return q, k and v of ln_1(tokens), each [windows, heads, tokens, depth]."""
        normed = self._block.ln_1(tokens)
        packed = F.linear(normed, self._attention.in_proj_weight, self._attention.in_proj_bias)
        split = packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return split[0], split[1], split[2]

    def value(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> Float[Tensor, "windows heads tokens depth"]:
        """Return v of ln_1(tokens) alone."""
        width = tokens.shape[-1]
        weight, bias = self._attention.in_proj_weight[2 * width :], self._attention.in_proj_bias[2 * width :]
        packed = F.linear(self._block.ln_1(tokens), weight, bias)
        split: Tensor = packed.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split

    def normalize(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> Float[Tensor, "windows tokens width"]:
        """Return ln_1(tokens)."""
        normed: Tensor = self._block.ln_1(tokens)
        return normed

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
        normed, network = self._block.ln_2(tokens), self._block.mlp
        quick = isinstance(network.gelu, QuickGELU)
        result: Tensor = self._block.ls_2(_quick_network(network, normed) if quick else network(normed))
        return result

    def forward(self, tokens: Float[Tensor, "windows tokens width"]) -> Float[Tensor, "windows tokens width"]:
        """Run the block as trained; no attention map is materialized."""
        query, key, value = self.query_key_value(tokens)
        tokens = tokens + self.output(F.scaled_dot_product_attention(query, key, value))
        return tokens + self.feed_forward(tokens)

    def forward_with_attention(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> tuple[Float[Tensor, "windows tokens width"], Float[Tensor, "windows tokens tokens"]]:
        """Run the block and return its head-mean attention [windows, tokens, tokens] in float32 too."""
        query, key, value = self.query_key_value(tokens)
        attended, mean = attend_with_mean(query, key, value, self.scale)
        tokens = tokens + self.output(attended)
        return tokens + self.feed_forward(tokens), mean

    def forward_with_keys(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> tuple[Float[Tensor, "windows tokens width"], Float[Tensor, "windows heads tokens depth"]]:
        """Run the block and return its keys too; queries and values are let go."""
        query, key, value = self.query_key_value(tokens)
        kept = key.clone(memory_format=torch.contiguous_format)
        tokens = tokens + self.output(F.scaled_dot_product_attention(query, key, value))
        return tokens + self.feed_forward(tokens), kept

    def forward_with_head_attention(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> tuple[Float[Tensor, "windows tokens width"], Float[Tensor, "windows heads tokens tokens"]]:
        """Run the block and return each head's attention in float32 too."""
        query, key, value = self.query_key_value(tokens)
        weights = (query @ (key * self.scale).mT).softmax(-1, dtype=torch.float32)
        tokens = tokens + self.output(weights.to(value.dtype) @ value)
        return tokens + self.feed_forward(tokens), weights

    def class_token(self, tokens: Float[Tensor, "windows tokens width"]) -> Float[Tensor, "windows 1 width"]:
        """Run the block for the class token alone; the others serve as keys and values."""
        query, key, value = self.query_key_value(tokens)
        first = tokens[:, :1] + self.output(F.scaled_dot_product_attention(query[:, :, :1], key, value))
        return first + self.feed_forward(first)


def _quick_network(network: Any, tokens: Float[Tensor, "windows tokens width"]) -> Tensor:
    """Run a feed-forward network with QuickGELU, x sigmoid(a x), in one pass over its widest tensor instead of three.

    The function is silu(a x) / a, and both factors go into the matrix products, which scale for nothing.
    """
    inner, outer = network.c_fc, network.c_proj
    slope = QUICK_GELU_SLOPE
    hidden = torch.addmm(inner.bias * slope, tokens.flatten(0, 1), inner.weight.mT, alpha=slope)
    hidden = F.silu(hidden, inplace=True)
    result = torch.addmm(outer.bias, hidden, outer.weight.mT, alpha=1 / slope)
    return result.view_as(tokens)
