"""The same work as the papers' released codes do it: one window at a time, every map materialized.

This is what the engine is compared with. It is written for fidelity to that form, not for use: all attention maps of
all blocks are kept, the transfer matrix is formed and masked anew for every class, and boxes are found class by class
on the CPU. The authors find contours with OpenCV; SciPy's component labelling stands in, as in the engine itself.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor

from ovss_core.clip.trace import EncoderTrace
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.images.resize import normalize
from ovss_core.images.windows import WindowLayout

ROUNDS = 3
BOX_SHARE = 0.4
KEEP_ABOVE = 0.05


@torch.inference_mode()
def label_picture(engine: SegmentationEngine, picture: np.ndarray) -> Int[Tensor, "height width"]:
    """Label one picture by the engine's head and FreeCP's redundancy purification, window by window.

    Maps of all classes are upsampled, summed and resized in full. Ambiguity purification is left out.

    Args:
        engine: Provides the tower, the head and the vocabulary, of one phrase a class.
        picture: uint8 RGB [height, width, 3].
    """
    embeddings = engine.text.phrase_embeddings.to(engine.device)
    [wave] = engine.gather([picture])
    maps = []
    for pixels in normalize(wave.pixels.cut_windows(slice(None)), *engine.normalization):
        trace, attention = encode_window(engine, pixels[None])
        features = F.normalize(engine.heads[0].features(engine.encoder, trace).float(), dim=-1)[0]
        refined, scores = score_window(attention, 100 * features @ embeddings.T, trace.grid)
        maps.append(torch.where((scores > KEEP_ABOVE)[:, None], refined, 0).view(-1, *trace.grid))
    return stitch_windows(maps, wave.layouts[0], wave.sizes[0]).argmax(0)


def encode_window(
    engine: SegmentationEngine, window: Float[Tensor, "1 3 height width"]
) -> tuple[EncoderTrace, list[Tensor]]:
    """Run blocks 1 to L-1 on one window; keep every block's tokens and the attention maps of all heads."""
    encoder = engine.encoder
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
        if layer in engine.request.hidden_sum:
            trace.hidden_sum = tokens if trace.hidden_sum is None else trace.hidden_sum + tokens
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
    normalized = (probability - probability.min()) / (probability.max() - probability.min())
    refined, scores = [], []
    for raw, level in zip(probability, normalized, strict=True):
        mask = torch.ones_like(level)
        if find_boxes:
            mask = torch.from_numpy(box_mask(level.view(grid).float().cpu().numpy())).to(level).flatten()
        moved = (transfer * mask[None, :]).to(level) @ level
        moved = (moved - moved.min()) / (moved.max() - moved.min() + 1e-8)
        refined.append(moved)
        scores.append((raw * moved).sum() / (raw.sum() + moved.sum() + 1e-8))
    return torch.stack(refined), torch.stack(scores)


def box_mask(level: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    """Paint the bounding boxes of the map's regions; the last row and column stay out."""
    values = (255 * level).astype(np.uint8)
    regions, _ = ndimage.label(values > int(BOX_SHARE * values.max()), np.ones((3, 3)))
    mask = np.zeros(level.shape, np.float32)
    for box in ndimage.find_objects(regions):
        mask[box] = 1
    mask[-1], mask[:, -1] = 0, 0
    return mask


def stitch_windows(
    maps: Sequence[Float[Tensor, "maps rows columns"]], layout: WindowLayout, size: tuple[int, int]
) -> Float[Tensor, "maps height width"]:
    """Upsample each window's maps, average where windows overlap, and resize the whole to `size`."""
    total = maps[0].new_zeros(len(maps[0]), *layout.image_size)
    count = maps[0].new_zeros(layout.image_size)
    height, width = layout.window_size
    for (top, left), window in zip(layout.origins, maps, strict=True):
        upsampled = F.interpolate(window[None], size=(height, width), mode="bilinear")[0]
        total[:, top : top + height, left : left + width] += upsampled
        count[top : top + height, left : left + width] += 1
    return F.interpolate((total / count)[None], size=size, mode="bilinear")[0]
