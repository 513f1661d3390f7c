"""What a dense head is: how the last block of CLIP is rearranged so that patches keep their own meaning."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.config import HeadSettings, ModelConfig


@dataclass(frozen=True)
class HeadOptions:
    """What may change a head.

    Attributes:
        purified: FreeCP follows, so use the form of the head that FreeCP's code uses (it differs for clip,
            maskclip and sclip: no block residual, and a feed-forward network with its own residual).
        settings: The head's own (`SegmenterConfig.head_settings`); None for its defaults.
        model: Which checkpoint it reads, for heads that know some by name.
        scoped: A region map comes with the images, and patches see inside their region only.
    """

    purified: bool = False
    settings: HeadSettings | None = None
    model: ModelConfig | None = None
    scoped: bool = False


class DenseHead(ABC):
    """Turns a trace of blocks 1 to L-1 into one feature vector a patch.

    A head is one file in this package: subclass, set `name`, and it can be chosen by that name.

    Attributes:
        needs_proxy: It reads a second tower, and its features lie on that tower's grid; written as a plain constant in
            the class, since settings are checked without importing it.
        can_scope: It can keep patches inside their region; written as a plain constant as well.
        classless: It works on a tower without a class token, since it takes patches from the trace
            (`EncoderTrace.patches_of`); written as a plain constant as well.
    """

    name: ClassVar[str]
    needs_proxy: ClassVar[bool] = False
    can_scope: ClassVar[bool] = False
    classless: ClassVar[bool] = False

    def __init__(self, options: HeadOptions) -> None:
        self.options = options

    def request(self, depth: int) -> TraceRequest:
        """Say what to keep of an encoder with `depth` blocks; nothing, unless a head overrides this."""
        return TraceRequest()

    @abstractmethod
    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Return the patches' features in the joint space, not normalized, row by row."""


def proportional_layer(layer: int, depth: int) -> int:
    """Carry a layer number that a paper gives for 12 blocks over to another depth; never the last block."""
    return min(max(1, round(layer * depth / 12)), depth - 1)


class LastBlockHead(DenseHead):
    """A head that only changes the last block: other attention, with or without residual and feed-forward."""

    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Attend, add what the form keeps, drop the class token, project."""
        block = encoder.blocks[-1]
        tokens = self.combine(block, trace.tokens, self.attend(block, trace))
        return encoder.project(trace.patches_of(tokens))

    @abstractmethod
    def attend(self, block: TransformerBlock, trace: EncoderTrace) -> Float[Tensor, "windows tokens width"]:
        """Return the output of the last block's attention, after its output projection."""

    def combine(
        self, block: TransformerBlock, tokens: Tensor, attended: Tensor
    ) -> Float[Tensor, "windows tokens width"]:
        """Put the attention's output in the block's place: neither residual nor feed-forward by default."""
        return attended


def with_feed_forward(block: TransformerBlock, tokens: Tensor) -> Tensor:
    """Add the feed-forward network's output to the tokens."""
    return tokens + block.feed_forward(tokens)


def self_attention(
    block: TransformerBlock, vectors: Tensor, value: Tensor, visible: Tensor | None = None
) -> Tensor:
    """Return softmax(s t t^T) v for vectors t, heads still apart; over what is `visible`, where that is given."""
    return F.scaled_dot_product_attention(vectors, vectors, value, attn_mask=visible, scale=block.scale)


def class_and_patches(trace: EncoderTrace, patches: Tensor) -> Tensor:
    """Put the trace's class token, if there is one, in front of (changed) patch tokens."""
    return torch.cat([trace.tokens[:, : trace.prefix], patches], 1)
