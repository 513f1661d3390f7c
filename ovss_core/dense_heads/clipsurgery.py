"""clipsurgery: a stream of its own through the last six blocks, values with values (CLIP Surgery, Li et al. 2025)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.config import ClipSurgeryConfig
from ovss_core.dense_heads.base import HeadOptions, self_attention
from ovss_core.dense_heads.region_scope import token_scope
from ovss_core.dense_heads.scoring import (
    EncodedWindows,
    Evidence,
    PhraseTables,
    ScoringHead,
    Words,
    cosines,
    join_weights,
)

NEW_PATH_BLOCKS = 6
"""As many as in the authors' code, whatever the depth."""
SURGERY_SCALE = 2.0


class ClipSurgeryHead(ScoringHead):
    """Adds the value-value attentions of the last six blocks to the stream that enters them; no feed-forward."""

    name = "clipsurgery"
    can_scope = True
    classless = True

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        given = options.settings
        self.settings = given if isinstance(given, ClipSurgeryConfig) else ClipSurgeryConfig()

    @property
    def sees_words(self) -> bool:
        """Whether words are weighted by the window's class token."""
        return self.settings.feature_surgery

    def request(self, depth: int) -> TraceRequest:
        """Ask for the inputs of the last six blocks."""
        return TraceRequest(hidden=frozenset(range(_start(depth), depth)))

    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Let each block read the plain path and write into the stream."""
        stream, visible = trace.hidden[_start(encoder.depth)], token_scope(trace)
        for layer in range(_start(encoder.depth), encoder.depth):
            block = encoder.blocks[layer]
            value = block.value(trace.hidden[layer])
            stream = stream + block.output(self_attention(block, value, value, visible))
        return encoder.project(trace.patches_of(stream))

    def evidence(self, encoder: ImageEncoder, trace: EncoderTrace, windows: Tensor) -> Evidence:
        """Keep the plain path's class token."""
        token = encoder.project(encoder.blocks[-1].class_token(trace.tokens))[:, 0]
        return {"class_token": F.normalize(token.float(), dim=-1)}

    def scores(self, encoder: ImageEncoder, encoded: EncodedWindows, words: Words) -> PhraseTables:
        """Weight each phrase's cosines by how much the class token speaks for it.

        The paper takes the mean over phrases away from each patch's scores; that moves all of a patch alike.
        """
        tables = cosines(encoded.features, words)
        phrases, others = surgery_weights(encoded.evidence["class_token"], words)
        return PhraseTables(phrases[..., None] * tables.phrases, others[..., None] * tables.others)


def surgery_weights(
    class_token: Float[Tensor, "windows features"], words: Words
) -> tuple[Float[Tensor, "windows phrases"], Float[Tensor, "windows others"]]:
    """Return the softmax over phrases of 2 cos, times their number: 1 on average."""
    logits, joining = (SURGERY_SCALE * class_token @ rows.T for rows in (words.phrases, words.others))
    phrases, others = join_weights(logits, joining)
    count = len(words.phrases)
    return phrases * count, others * (count + 1)


def _start(depth: int) -> int:
    return max(depth - NEW_PATH_BLOCKS, 0)
