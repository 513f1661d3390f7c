"""Print what tower and head take on a GPU, with and without each kernel: `python -m tests.gpu.encoder_times`.

Microseconds a window, random weights in bfloat16, by the device's own clock; medians.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.clip.blocks import KeptAttention, Stream
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig
from ovss_core.dense_heads import HeadOptions, build_head
from ovss_core.engine.trial import milliseconds
from ovss_core.kernels import products

NORMS = ("ovss_core.kernels.norms",)
HEAD = (
    "ovss_core.kernels.attention",
    "ovss_core.feature_purification.mitigation",
    "ovss_core.feature_purification.outliers",
    "ovss_core.feature_purification.similarity",
    "ovss_core.dense_heads.similarity_guided",
)
TILES = [((128, 128), 8), ((128, 64), 8), ((128, 64), 4), ((64, 128), 8), ((64, 256), 8), ((64, 64), 4)]


@contextmanager
def without(modules: Sequence[str]) -> Iterator[None]:
    """Let some modules find no kernel."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch(f"{module}.use_kernel", lambda tensor: False))
        yield


@contextmanager
def sums_in_the_kernel() -> Iterator[None]:
    """Let the kernel of the mean find the softmax's sums by itself."""
    from ovss_core.kernels import attention, attention_triton

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, total: Tensor | None, whole: bool):  # type: ignore[no-untyped-def]
        attended = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return attended, attention_triton.launch_mean_with_sums(query, key, scale, total, whole)

    with patch.object(attention, "_attend_on_device", attend):
        yield


@torch.inference_mode()
def measure(encoder: ImageEncoder, windows: int) -> None:
    """Print the table for batches of so many windows."""
    head = build_head("sfp", HeadOptions(purified=True))
    request = head.request(encoder.depth)
    pixels = torch.randn(windows, 3, 224, 224, device="cuda")
    print(f"\nbatches of {windows} windows: microseconds a window")

    def show(name: str, run: Callable[[], object]) -> None:
        print(f"{1000 * milliseconds(run, turns=7) / windows:8.1f}  {name}", flush=True)

    def tower() -> Stream:
        stream = Stream(tokens)
        for block in encoder.blocks:
            stream = block.advance(stream)
        return stream

    def trace() -> object:
        return encoder.trace(pixels, request.with_mean_attention())

    def encode() -> Tensor:
        return F.normalize(
            head.features(encoder, encoder.trace(pixels, request.with_mean_attention())).float()
        )

    tokens, block = encoder.embed(pixels), encoder.blocks[5]
    weight = block.quick_gelu_weight
    query, key, value = block.query_key_value(tokens)
    flat = tokens.flatten(0, 1)
    wide = torch.empty(len(flat), encoder.width * 4, dtype=flat.dtype, device="cuda")
    show("embedding, once", lambda: encoder.embed(pixels))
    show("matrix products of 12 blocks", lambda: _products(encoder, flat, wide))
    show("flash attention, 12 times", lambda: [_flash(query, key, value) for _ in range(12)])
    show("silu in place, 12 times", lambda: [F.silu(wide, inplace=True) for _ in range(12)])
    show("12 blocks", tower)
    if weight is not None:
        for cut in products.TILES:
            with products.tiled(weight, cut):
                show(f"12 blocks, QuickGELU in the product, {cut}", tower)
    with without(NORMS):
        show("12 blocks without the kernel of norms", tower)
    total = torch.zeros(windows, 196, 196, device="cuda")
    with sums_in_the_kernel():
        show(
            "11 attentions with mean, the kernel finding the sums",
            lambda: _means(encoder, query, key, value, total),
        )
    for tile, warps in TILES:
        from ovss_core.kernels import attention_triton

        with (
            patch.object(attention_triton, "TILE", tile),
            patch.object(attention_triton, "WARPS", warps),
        ):
            name = f"11 attentions with mean, sums known, tiles {tile}, {warps} warps"
            show(name, lambda: _means(encoder, query, key, value, total))
    show("11 blocks with all that the head and FreeCP ask for", trace)
    kept = encoder.trace(pixels, request.with_mean_attention())
    torch.backends.cuda.matmul.allow_tf32 = True
    show("SFP's head", lambda: head.features(encoder, kept))
    with without(HEAD):
        show("SFP's head without kernels", lambda: head.features(encoder, kept))
    show("all", encode)
    if weight is not None:
        for cut in products.TILES:
            with products.tiled(weight, cut):
                show(f"all, QuickGELU in the product, {cut}", encode)
    with sums_in_the_kernel(), without([*NORMS, *HEAD[1:]]):
        show("all, kernels as before: the mean of attention alone", encode)
    torch.backends.cuda.matmul.allow_tf32 = False
    _step_by_step(encoder, kept, show)


def _products(encoder: ImageEncoder, flat: Tensor, wide: Tensor) -> None:
    for block in encoder.blocks:
        own = block._block
        F.linear(flat, own.attn.in_proj_weight, own.attn.in_proj_bias)
        F.linear(flat, own.attn.out_proj.weight, own.attn.out_proj.bias)
        F.linear(flat, own.mlp.c_fc.weight, own.mlp.c_fc.bias)
        F.linear(wide, own.mlp.c_proj.weight, own.mlp.c_proj.bias)


def _flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def _means(encoder: ImageEncoder, query: Tensor, key: Tensor, value: Tensor, total: Tensor) -> None:
    from ovss_core.kernels.attention import attend_with_mean

    for _ in range(encoder.depth - 1):
        attend_with_mean(query, key, value, encoder.blocks[0].scale, total, False)


def _step_by_step(
    encoder: ImageEncoder, kept: object, show: Callable[[str, Callable[[], object]], None]
) -> None:
    """Time the steps of a block and of the head alone."""
    from ovss_core.clip.trace import EncoderTrace
    from ovss_core.feature_purification.mitigation import repair_tokens
    from ovss_core.feature_purification.outliers import attention_outliers
    from ovss_core.feature_purification.similarity import Aggregation, guide_attention
    from ovss_core.kernels.attention import attend_by_terms
    from ovss_core.kernels.norms import add_norm

    assert isinstance(kept, EncoderTrace)
    tokens, block, own = kept.tokens, encoder.blocks[5], encoder.blocks[5]._block
    patches, last = tokens[:, 1:], encoder.depth - 1
    outliers = attention_outliers(kept.class_attention[last], kept.self_attention[last], 1.5, 10)
    show("  sum and norm", lambda: add_norm(tokens, tokens, own.ln_1))
    with without(NORMS):
        show("  sum and norm without the kernel", lambda: add_norm(tokens, tokens, own.ln_1))
    show("  a block", lambda: block.advance(Stream(tokens)))
    show("  a block with its mean of attention", lambda: block.advance(Stream(tokens), KeptAttention(True)))
    show("  a block's feed-forward network", lambda: block.feed_forward(tokens))
    show(
        "  outliers",
        lambda: attention_outliers(kept.class_attention[last], kept.self_attention[last], 1.5, 10),
    )
    show("  repair", lambda: repair_tokens(patches, outliers, kept.grid))
    show("  weights", lambda: Aggregation.of(patches))
    show("  weights and guided attention", lambda: guide_attention(patches, outliers, kept.grid, False))
    weights, attention = guide_attention(patches, outliers, kept.grid, False)
    show("  an average", lambda: weights.apply(patches))
    query, key, value = block.query_key_value(patches)
    show("  queries, keys and values", lambda: block.query_key_value(patches))
    show("  attention by terms", lambda: attend_by_terms((key, query), block.scale, attention, value, value))
    show("  projection", lambda: encoder.project(patches, patches))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one table for each size of batches."""
    parser = argparse.ArgumentParser("python -m tests.gpu.encoder_times", description=__doc__)
    parser.add_argument("--windows", default="128,256", help="windows of a batch, by commas")
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    given = parser.parse_args(arguments)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    visual = load_clip(ModelConfig(given.model, "random")).model.visual
    encoder = ImageEncoder(visual.to("cuda", torch.bfloat16))
    for text in given.windows.split(","):
        measure(encoder, int(text))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
