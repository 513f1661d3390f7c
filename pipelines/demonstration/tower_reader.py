"""Reads an image tower in training the way the finished one is read: by the hosts' own code, with gradients."""

import random
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.positions import resample_positions
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace
from ovss_core.dense_heads import HeadOptions, build_head

TRAINING_HOSTS = ("clearclip", "clip", "gem", "maskclip", "naclip", "scclip", "sclip", "sfp")
"""Hosts that training reads the patches as; the shipped weights come from drawing among these."""


class TowerReader:
    """Runs the blocks of a trainable tower once and lets any host read the patches.

    Args:
        visual: An open_clip vision transformer; its weights require gradients from here on.
    """

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self._encoder = ImageEncoder(visual)
        visual.requires_grad_(True)  # the encoder freezes what it opens
        self.base_grid = self._encoder.base_grid

    def trace(
        self, images: Float[Tensor, "batch 3 height width"], positions: Float[Tensor, "tokens width"]
    ) -> EncoderTrace:
        """Run blocks 1 to L-1 and keep every block's tokens, the attention statistics and the mean attention.

        Args:
            images: Normalized pixels.
            positions: A table for the images' grid, see `draw_positions`.
        """
        patches = self.visual.conv1(images)
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.expand(len(images), 1, -1)
        tokens = self.visual.ln_pre(torch.cat([first, patches], 1) + positions)
        trace, total = EncoderTrace(grid, tokens, hidden={0: tokens}), torch.zeros(())
        for layer, block in enumerate(self._encoder.blocks[:-1], 1):
            tokens, attention = _attend(block, tokens)
            trace.hidden[layer] = tokens
            trace.class_attention[layer] = attention[:, 0, 1:]
            trace.self_attention[layer] = attention.diagonal(dim1=1, dim2=2)[:, 1:]
            total = total + attention[:, 1:, 1:]
        trace.tokens, trace.mean_attention = tokens, total / (self._encoder.depth - 1)
        return trace

    def class_features(self, trace: EncoderTrace) -> Float[Tensor, "batch features"]:
        """Return the unit features of the class token."""
        summary = self._encoder.blocks[-1].class_token(trace.tokens)
        return F.normalize(self._encoder.project(summary)[:, 0], dim=-1)

    def patch_features(
        self, trace: EncoderTrace, host: str, purified: bool = False
    ) -> Float[Tensor, "batch patches features"]:
        """Return the unit features of the patches as a host reads them, in FreeCP's form where `purified`."""
        head = build_head(host, HeadOptions(purified=purified))
        trace.hidden_sum = None
        for layer in sorted(head.request(self._encoder.depth).hidden_sum):
            tokens = trace.hidden[layer]
            trace.hidden_sum = tokens if trace.hidden_sum is None else trace.hidden_sum + tokens
        return F.normalize(head.features(self._encoder, trace), dim=-1)

    def draw_positions(
        self, grid: tuple[int, int], rng: random.Random | None = None
    ) -> Float[Tensor, "tokens width"]:
        """Return positions for a grid: the table resampled, or sometimes (with `rng`) a random part of it."""
        table: Tensor = self.visual.positional_embedding
        if grid == self.base_grid or rng is None or rng.random() < 0.4:
            return resample_positions(table, self.base_grid, grid)
        row, column = (rng.randint(0, base - n) for base, n in zip(self.base_grid, grid, strict=True))
        patches = table[1:].unflatten(0, self.base_grid)[row : row + grid[0], column : column + grid[1]]
        return torch.cat([table[:1], patches.flatten(0, 1)])


def draw_host(rng: random.Random) -> tuple[str, bool]:
    """Draw a host other than clearclip, and whether it is read in FreeCP's form."""
    return rng.choice([host for host in TRAINING_HOSTS if host != "clearclip"]), rng.random() < 0.5


def _attend(
    block: TransformerBlock, tokens: Float[Tensor, "batch tokens width"]
) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch tokens tokens"]]:
    """Run a block and return its head-mean attention too; unlike the encoder's form, gradients pass through it."""
    query, key, value = block.query_key_value(tokens)
    weights = (query @ (key * block.scale).transpose(-1, -2)).softmax(-1)
    tokens = tokens + block.output(weights @ value)
    return tokens + block.feed_forward(tokens), weights.mean(1)
