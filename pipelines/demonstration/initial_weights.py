"""Initial weights that let a ViT learn from few pictures: smooth patch filters, and attention that starts out local.

A tower with random weights spends most of a short training finding out that pictures are smooth and that neighbors
belong together. Here the patch filters start as the lowest cosines of each color axis, scaled so that every one
varies alike over the scenes; positions start as sines and cosines; and queries, keys, values and output projections
start as Trockman and Kolter's "Mimetic Initialization of Self-Attention Layers" (2023) sets them.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.demonstration.tower_reader import TowerReader
from pipelines.demonstration.word_warmup import center_norm

_QUERY_KEY = (0.7, 0.7)  # noise and identity in the product of queries and keys
_VALUE_OUTPUT = (0.4, 0.4)  # noise and (negative) identity in the product of values and output projection
_POSITION_AMPLITUDE = 0.5
_COLOR_AXES = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (-0.5, 1.0, -0.5))


@torch.no_grad()
def set_initial_weights(visual: Any, samples: Tensor) -> None:
    """Set the starting weights of an image tower.

    Args:
        visual: An open_clip vision transformer with a square grid; its width a multiple of 3.
        samples: float32 [pictures, 3, height, width], normalized; the filters' scale comes from them.
    """
    width, patch = visual.conv1.weight.shape[0], visual.conv1.weight.shape[-1]
    filters = _cosine_filters(width, patch)
    spread = F.conv2d(samples, filters, stride=patch).transpose(0, 1).flatten(1).std(1)
    visual.conv1.weight.copy_(
        filters / (spread * spread.median()).sqrt()[:, None, None, None].clamp(min=1e-3)
    )
    visual.positional_embedding[1:] = _wave_positions(width, visual.grid_size[0])
    for block in visual.transformer.resblocks:
        _set_attention(block.attn)
    seen: list[Tensor] = []
    hook = visual.ln_post.register_forward_hook(lambda _, __, out: seen.append(out))
    reader = TowerReader(visual)
    grid = (samples.shape[2] // patch, samples.shape[3] // patch)
    reader.patch_features(reader.trace(samples, reader.draw_positions(grid)), "clearclip")
    hook.remove()
    center_norm(visual.ln_post, seen[0])


def _cosine_filters(width: int, patch: int) -> Tensor:
    """Return [width, 3, patch, patch]: the lowest two-dimensional cosines on three color axes."""
    per_axis = -(-width // 3)
    pixel = (torch.arange(patch) + 0.5) * math.pi / patch
    pairs = sorted(
        ((row, column) for row in range(patch) for column in range(patch)), key=lambda p: (sum(p), p)
    )
    waves = torch.stack(
        [torch.outer((pixel * row).cos(), (pixel * column).cos()) for row, column in pairs[:per_axis]]
    )
    axes = torch.tensor(_COLOR_AXES)
    return (axes[:, None, :, None, None] * waves[None, :, None]).flatten(0, 1)[:width]


def _wave_positions(width: int, side: int) -> Tensor:
    """Return smooth starting positions [side * side, width]: sines and cosines of row and column."""
    places = torch.arange(side)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(places, places, indexing="ij"))
    frequency = 20.0 ** -torch.linspace(0, 1, width // 4)
    angles = [axis[:, None] * frequency for axis in (rows, columns)]
    return _POSITION_AMPLITUDE * torch.cat(
        [wave for angle in angles for wave in (angle.sin(), angle.cos())], 1
    )


def _set_attention(attention: Any) -> None:
    width, heads = attention.embed_dim, attention.num_heads
    depth = width // heads
    for head in range(heads):
        noise, identity = _QUERY_KEY
        product = noise * torch.randn(width, width) / math.sqrt(width) + identity * torch.eye(width)
        left, strength, right = torch.linalg.svd(product)
        root = strength[:depth].sqrt()
        rows = slice(head * depth, (head + 1) * depth)
        attention.in_proj_weight[:width][rows] = (left[:, :depth] * root).T
        attention.in_proj_weight[width : 2 * width][rows] = right[:depth] * root[:, None]
    noise, identity = _VALUE_OUTPUT
    product = noise * torch.randn(width, width) / math.sqrt(width) - identity * torch.eye(width)
    left, strength, right = torch.linalg.svd(product)
    attention.in_proj_weight[2 * width :] = strength.sqrt()[:, None] * right
    attention.out_proj.weight.copy_(left * strength.sqrt())
