"""Whether the picture of a word speaks for that word, rather than for another."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import TraceRequest
from ovss_core.images.resize import normalize


def encode_pictures(
    encoder: ImageEncoder,
    pictures: UInt8[Tensor, "pictures height width 3"],
    normalization: tuple[tuple[float, ...], tuple[float, ...]],
    last_block: bool = True,
) -> Float[Tensor, "pictures features"]:
    """Encode pictures by the class token; unit features, float32.

    Args:
        last_block: False leaves the last block out, as CaR's released judge does: what follows it follows block L-1.
    """
    pixels = normalize(pictures.to(encoder.device), *normalization)
    if last_block:
        return F.normalize(encoder.class_features(pixels, "bilinear").float(), dim=-1)
    trace = encoder.trace(pixels, TraceRequest(resampling="bilinear"))
    return F.normalize(encoder.project(trace.tokens[:, :1])[:, 0].float(), dim=-1)


def score_words(
    pictures: Float[Tensor, "words features"],
    words: Float[Tensor, "prompts words features"],
    scale: float,
    gain: float,
) -> Float[Tensor, " words"]:
    """Score each word on its own picture: softmax over words, mean over prompts, times `gain`, softmax again.

    Args:
        pictures: Unit features, one a word.
        words: Unit vectors of the words in each prompt.
        scale: Factor on cosines.
        gain: Factor on the mean.

    Returns:
        A score in [0, 1] for each word.
    """
    shares = (scale * (words @ pictures.T)).softmax(1).mean(0)
    return (gain * shares).softmax(0).diagonal()


def those_that_stay(scores: Float[Tensor, " words"], threshold: float) -> Bool[Tensor, " words"]:
    """Keep the words whose score is above the threshold, and the best one where none is."""
    above = scores > threshold
    if above.any():
        return above
    best = torch.zeros_like(above)
    best[scores.argmax()] = True
    return best
