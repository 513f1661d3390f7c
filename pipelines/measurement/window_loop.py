"""The same work as the papers' released codes do it: one window at a time, every map materialised.

This is what the engine is compared with. It is written for fidelity to that form, not for use: all attention
maps of all blocks are kept, the transfer matrix is formed and masked anew for every class, and boxes are found
class by class on the host. The authors find contours with OpenCV; here SciPy-free flood fill stands in, so
times are given with and without it.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ovss_core.encoders.image_encoder import ImageEncoder

ROUNDS = 3
BOX_SHARE = 0.4


def encode_window(
    encoder: ImageEncoder, window: Float[Tensor, "1 3 height width"]
) -> tuple[Float[Tensor, "1 tokens width"], list[Tensor]]:
    """Run blocks 1 to L-1 on one window and keep the attention maps of all heads."""
    tokens = encoder.embed(window)
    maps = []
    for block in encoder.blocks[:-1]:
        query, key, value = block.query_key_value(tokens)
        weights = (query @ key.transpose(-1, -2) * block.scale).softmax(-1)
        maps.append(weights)
        tokens = tokens + block.output(weights @ value)
        tokens = tokens + block.feed_forward(tokens)
    return tokens, maps


def score_window(
    maps: list[Float[Tensor, "1 heads tokens tokens"]],
    logits: Float[Tensor, "patches classes"],
    grid: tuple[int, int],
    find_boxes: bool = True,
) -> tuple[Float[Tensor, "classes patches"], Float[Tensor, " classes"]]:
    """Refine every class's map with its own masked transfer matrix and score it (methods, FreeCP 2 to 6)."""
    attention = torch.stack([weights.mean(1)[0] for weights in maps]).mean(0)[1:, 1:]
    for _ in range(ROUNDS):
        attention = attention / attention.sum(0, keepdim=True)
        attention = attention / attention.sum(1, keepdim=True)
    transfer = (attention + attention.T) / 2
    transfer = transfer @ transfer
    probability = logits.softmax(1).T
    normalised = (probability - probability.min()) / (probability.max() - probability.min())
    refined, scores = [], []
    for raw, level in zip(probability, normalised, strict=True):
        mask = torch.ones_like(level)
        if find_boxes:
            mask = torch.from_numpy(box_mask(level.view(grid).cpu().numpy())).to(level).flatten()
        moved = (transfer * mask[None, :]) @ level
        moved = (moved - moved.min()) / (moved.max() - moved.min() + 1e-8)
        refined.append(moved)
        scores.append((raw * moved).sum() / (raw.sum() + moved.sum() + 1e-8))
    return torch.stack(refined), torch.stack(scores)


def box_mask(level: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    """Paint the bounding boxes of the map's regions; the last row and column stay out."""
    values = (255 * level).astype(np.uint8)
    above = values > int(BOX_SHARE * values.max())
    mask = np.zeros(level.shape, np.float32)
    rows, columns = level.shape
    left = {(int(y), int(x)) for y, x in np.argwhere(above)}
    while left:
        y0, x0, y1, x1 = _flood(left)
        mask[y0 : min(y1 + 1, rows - 1), x0 : min(x1 + 1, columns - 1)] = 1
    return mask


def _flood(left: set[tuple[int, int]]) -> tuple[int, int, int, int]:
    """Take one 8-connected region out of `left` and return its bounds, inclusive."""
    pending = [left.pop()]
    y0 = y1 = pending[0][0]
    x0 = x1 = pending[0][1]
    while pending:
        y, x = pending.pop()
        y0, y1, x0, x1 = min(y0, y), max(y1, y), min(x0, x), max(x1, x)
        for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
            if near in left:
                left.remove(near)
                pending.append(near)
    return y0, x0, y1, x1
