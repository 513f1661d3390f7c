"""Where an image activates each word: channels of the last block weighted by gradients, spread along the attention.

The masks of "CLIP as RNN" (CaR, CVPR 2024), whose rule is that of Grad-CAM on a ViT. a are the tokens behind ln_1 of the
last block, f the unit mean of the patches' features, p = softmax(s f T) over all words. A word's map is the positive part of
the sum over channels of a, each weighted by the mean over patches of the derivative of p by a; its boxes are spread along the
attention of the last blocks as FreeCP's maps are.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.class_purification.refinement import Affinity, balance, spread
from ovss_core.class_purification.regions import box_union, quantize, threshold_regions
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import TraceRequest

LAST_BLOCKS = 8
"""Blocks whose attention is averaged, the last one among them."""


@dataclass
class _Total:
    attention: Tensor | None = None


@dataclass(frozen=True)
class LateAttention:
    """Sums the head-mean attention between patches from one block on, as an observer of the tower.

    Attributes:
        first: First block (from 1) that counts.
    """

    first: int

    def begin(self) -> _Total:
        """Start a sum."""
        return _Total()

    def wants(self, layer: int) -> bool:
        """Take the late blocks."""
        return layer >= self.first

    def after_block(
        self, observed: _Total, layer: int, tokens: Tensor, attention: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Add one block's attention, and leave its tokens as they are."""
        patches = grid[0] * grid[1]
        own = attention[:, -patches:, -patches:]
        observed.attention = own.clone() if observed.attention is None else observed.attention.add_(own)
        return tokens


@dataclass(frozen=True)
class Sight:
    """What the tower makes of one image as a whole; all rounds read it.

    Attributes:
        tokens: Output of block L-1, class token first.
        affinity: Mean attention of the last blocks, balanced.
        grid: Rows and columns of patches.
    """

    tokens: Float[Tensor, "1 tokens width"]
    affinity: Affinity
    grid: tuple[int, int]

    @classmethod
    def of(cls, encoder: ImageEncoder, pixels: Float[Tensor, "1 3 height width"]) -> "Sight":
        """Run the tower over a whole image, positions resampled bilinearly as the released code does.

        Args:
            encoder: With a class token.
            pixels: Normalized; both sides at least one patch.
        """
        first = max(1, encoder.depth - LAST_BLOCKS + 1)
        trace = encoder.trace(pixels, TraceRequest(observer=LateAttention(first), resampling="bilinear"))
        _, last = encoder.blocks[-1].forward_with_attention(trace.tokens)
        patches = trace.grid[0] * trace.grid[1]
        total, count = last[:, -patches:, -patches:], encoder.depth - first + 1
        if trace.observed.attention is not None:
            total = total + trace.observed.attention
        return cls(trace.tokens, balance(total / count), trace.grid)


def channel_weights(
    encoder: ImageEncoder, sight: Sight, words: Float[Tensor, "words features"], wanted: int, scale: float
) -> tuple[Float[Tensor, "wanted width"], Float[Tensor, "patches width"], Float[Tensor, " words"]]:
    """Differentiate the probability of words by the tokens behind ln_1 of the last block.

    Args:
        words: Unit vectors of all that compete.
        wanted: How many of them, from the first, are differentiated.
        scale: Factor on cosines.

    Returns:
        The mean derivative over patches of each wanted word, the patches behind ln_1, and the probability of all words;
        float32.
    """
    block, patches = encoder.blocks[-1], sight.grid[0] * sight.grid[1]
    encoder.lie_on(sight.grid)
    with torch.inference_mode(False), torch.enable_grad():
        # tensors of inference mode cannot be differentiated; copies can
        tokens, vectors = sight.tokens.clone(), words.clone().float()
        normed = block.normalize(tokens).detach().requires_grad_()
        features = encoder.project(block.forward_normed(tokens, normed)[:, -patches:])
        probability = (scale * (vectors @ F.normalize(features[0].float().mean(0), dim=0))).softmax(0)
        rows = [
            torch.autograd.grad(probability[word], normed, retain_graph=True)[0][0, -patches:].float().mean(0)
            for word in range(wanted)
        ]
    weights = torch.stack(rows) if rows else normed.new_zeros(0, normed.shape[2], dtype=torch.float32)
    return weights, normed.detach()[0, -patches:].float(), probability.detach()


def activation_maps(
    encoder: ImageEncoder,
    sight: Sight,
    words: Float[Tensor, "words features"],
    background: Float[Tensor, "others features"],
    scale: float,
) -> Float[Tensor, "words patches"]:
    """Draw where each word is activated, stretched to [0, 1]; 0 for a word that is activated nowhere.

    Args:
        words: Unit vectors of the words.
        background: Those of words that compete with them and get no map. A word that is activated nowhere is tried again
            without these.
        scale: Factor on cosines.
    """
    competing = torch.cat([words, background])
    weights, channels, _ = channel_weights(encoder, sight, competing, len(words), scale)
    maps = (weights @ channels.T).relu()
    empty = maps.amax(1) == 0
    if len(background) and empty.any():
        weights, _, _ = channel_weights(encoder, sight, words, len(words), scale)
        maps = torch.where(empty[:, None], (weights @ channels.T).relu(), maps)
    return stretch(maps)


def stretch(maps: Float[Tensor, "words patches"]) -> Float[Tensor, "words patches"]:
    """Bring each map's values to [0, 1]; a map that is the same everywhere becomes 0."""
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0.0)


def spread_boxes(
    maps: Float[Tensor, "words patches"], sight: Sight, box_threshold: float
) -> Float[Tensor, "words patches"]:
    """Cut maps to the boxes of their parts, and spread them along the attention twice, as FreeCP does after CaR.

    Args:
        maps: With values in [0, 1].
        box_threshold: Share of a map's peak above which a patch belongs to a part.
    """
    levels = quantize(maps)
    regions = threshold_regions(levels, levels.amax(1), box_threshold)
    inside = box_union(regions.unflatten(1, sight.grid)).flatten(1)
    return spread(sight.affinity, (maps * inside)[None])[0]


def masks_of_words(
    maps: Float[Tensor, "words patches"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "words height width"]:
    """Stretch spread maps to [0, 1] and enlarge them bilinearly to a picture of `size` pixels."""
    return F.interpolate(stretch(maps).unflatten(1, grid)[None], size=size, mode="bilinear")[0]
