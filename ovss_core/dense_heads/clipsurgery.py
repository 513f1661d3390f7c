"""clipsurgery: a stream of its own through the last six blocks, values with values (CLIP Surgery, Li et al. 2025)."""

from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.dense_heads.base import DenseHead, self_attention

NEW_PATH_BLOCKS = 6
"""As many as in the authors' code, whatever the depth."""


class ClipSurgeryHead(DenseHead):
    """Adds the value-value attentions of the last six blocks to the stream that enters them; no feed-forward."""

    name = "clipsurgery"

    def request(self, depth: int) -> TraceRequest:
        """Ask for the inputs of the last six blocks."""
        return TraceRequest(hidden=frozenset(range(_start(depth), depth)))

    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Let each block read the plain path and write into the stream."""
        stream = trace.hidden[_start(encoder.depth)]
        for layer in range(_start(encoder.depth), encoder.depth):
            block = encoder.blocks[layer]
            value = block.value(trace.hidden[layer])
            stream = stream + block.output(self_attention(block, value, value))
        return encoder.project(stream[:, 1:])


def _start(depth: int) -> int:
    return max(depth - NEW_PATH_BLOCKS, 0)
