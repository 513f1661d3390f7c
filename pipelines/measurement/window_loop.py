"""The same work as the papers' released codes do it: one window at a time, every map materialised.

This is what the engine is compared with. It is written for fidelity to that form, not for use: all attention
maps of all blocks are kept, the transfer matrix is formed and masked anew for every class, and boxes are found
class by class on the host. The authors find contours with OpenCV; here SciPy-free flood fill stands in, so
times are given with and without it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ovss_core.encoders.image_encoder import ImageEncoder
from ovss_core.encoders.trace import EncoderTrace
from ovss_core.engine.engine import PreparedImage, SegmentationEngine
from ovss_core.inference.windows import WindowLayout

ROUNDS = 3
BOX_SHARE = 0.4
KEEP_ABOVE = 0.05


@torch.inference_mode()
def label_picture(
    engine: SegmentationEngine, image: PreparedImage, embeddings: Float[Tensor, "classes features"]
) -> Int[Tensor, "height width"]:
    """Label one picture by the engine's host and FreeCP's redundancy purification, window by window.

    Maps of all classes are upsampled, summed and resized in full. Ambiguity purification is left out.

    Args:
        engine: Provides the tower and the host.
        image: The picture, resized.
        embeddings: Unit class vectors.
    """
    encoder = engine.encoder
    layout = WindowLayout.of(image.pixels.shape[0], image.pixels.shape[1], engine.config.windows)
    total = torch.zeros(len(embeddings), *layout.image_size, device=engine.device)
    count = torch.zeros(layout.image_size, device=engine.device)
    height, width = layout.window_size
    for (top, left), window in zip(layout.origins, layout.cut(image.pixels), strict=True):
        trace, maps = encode_window(encoder, engine.normalise(window[None]))
        for layer in engine.request.hidden_sum:
            hidden = trace.hidden[layer]
            trace.hidden_sum = hidden if trace.hidden_sum is None else trace.hidden_sum + hidden
        features = F.normalize(engine.head.features(encoder, trace).float(), dim=-1)[0]
        refined, scores = score_window(maps, 100 * features @ embeddings.T, trace.grid)
        kept = torch.where((scores > KEEP_ABOVE)[:, None], refined, 0).view(1, -1, *trace.grid)
        upsampled = F.interpolate(kept, size=(height, width), mode="bilinear")[0]
        total[:, top : top + height, left : left + width] += upsampled
        count[top : top + height, left : left + width] += 1
    return F.interpolate((total / count)[None], size=image.size, mode="bilinear")[0].argmax(0)


def encode_window(
    encoder: ImageEncoder, window: Float[Tensor, "1 3 height width"]
) -> tuple[EncoderTrace, list[Tensor]]:
    """Run blocks 1 to L-1 on one window; keep every block's tokens and the attention maps of all heads."""
    tokens = encoder.embed(window)
    trace, maps = EncoderTrace(encoder.grid_of((window.shape[2], window.shape[3])), tokens), []
    for layer, block in enumerate(encoder.blocks[:-1], 1):
        query, key, value = block.query_key_value(tokens)
        weights = (query @ key.transpose(-1, -2) * block.scale).softmax(-1)
        tokens = tokens + block.output(weights @ value)
        tokens = tokens + block.feed_forward(tokens)
        maps.append(weights)
        trace.hidden[layer] = tokens
        mean = weights.mean(1)
        trace.class_attention[layer] = mean[:, 0, 1:]
        trace.self_attention[layer] = mean.diagonal(dim1=1, dim2=2)[:, 1:]
    trace.tokens = tokens
    return trace, maps


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
