"""Levers on the image tower."""

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from ovss_core.inference.resolution import CROPS_PER_WINDOW
from torch import Tensor

from ovss_core.encoders.blocks import TransformerBlock
from ovss_core.encoders.image_encoder import ImageEncoder
from ovss_core.encoders.trace import TraceRequest
from ovss_core.engine.engine import SegmentationEngine
from pipelines.measurement.engine_times import cut_windows
from pipelines.measurement.levers import Comparison, Run
from pipelines.measurement.workload import Workload


def encoder_levers(workload: Workload) -> Iterator[Comparison]:
    """Compare forms of the image tower, over the windows of SFP's protocol."""
    engine = workload.engine("sfp", "freecp", 150)
    _, _, cut = cut_windows(workload, "sfp")
    pixels = engine.normalise(np.concatenate(cut)).to(engine.encoder.dtype)
    tower, size = engine.encoder, engine.window_batch
    batch = pixels[:size]
    yield from _batch_levers(tower, pixels, size)
    yield from _attention_levers(engine, batch)
    tokens, network = tower.embed(batch), workload.clip.model.visual.transformer.resblocks[0]
    yield Comparison(
        f"feed-forward network with {type(network.mlp.gelu).__name__} in one pass",
        True,
        lambda: network.mlp(network.ln_2(tokens)),
        lambda: partial(tower.blocks[0].feed_forward, tokens),
    )
    crops = _crops(batch, engine)
    yield Comparison(
        "ambiguity crops: the class token alone in the last block",
        True,
        lambda: tower.project(encode(tower, crops)[:, :1]),
        lambda: partial(tower.class_features, crops),
    )
    yield Comparison(
        "channels-last patch embedding",
        False,
        partial(tower.embed, batch),
        lambda: _channels_last(workload, batch),
    )
    plain = partial(encode, tower, batch)
    yield Comparison("bfloat16 (--precision bfloat16)", False, plain, lambda: _bfloat16(workload, batch))
    if workload.config.compiled:
        yield Comparison("torch.compile of the blocks", False, plain, lambda: _compiled(tower, batch))


def encode(tower: ImageEncoder, windows: Float[Tensor, "windows 3 height width"]) -> Tensor:
    """Run all blocks as trained."""
    tokens = tower.embed(windows)
    for block in tower.blocks:
        tokens = block.forward(tokens)
    return tokens


def _batch_levers(tower: ImageEncoder, pixels: Tensor, size: int) -> Iterator[Comparison]:
    def in_batches(count: int) -> Run:
        return lambda: [encode(tower, part) for part in pixels.split(count)]

    yield Comparison(
        f"windows in batches of {size}, not one by one", True, in_batches(1), lambda: in_batches(size)
    )
    if len(pixels) > size:
        name = f"windows in batches of {size}, not {len(pixels)}"
        yield Comparison(name, True, in_batches(len(pixels)), lambda: in_batches(size))


def _attention_levers(engine: SegmentationEngine, batch: Tensor) -> Iterator[Comparison]:
    tower = engine.encoder
    tokens, block = tower.embed(batch), tower.blocks[0]
    on_cpu = batch.device.type == "cpu"
    yield Comparison(
        "attention maps a window at a time, not of a whole batch",
        on_cpu,
        partial(_maps_at_once, block, tokens),
        lambda: _maps(block, tokens) if on_cpu else partial(_maps_by_window, block, tokens),
    )
    yield Comparison(
        "a running mean of the attention, not the maps of all heads and blocks",
        True,
        partial(_keep_all_maps, tower, batch),
        lambda: partial(tower.trace, batch, TraceRequest(mean_attention=True)),
    )
    yield Comparison(
        "scaled_dot_product_attention, no maps (without FreeCP)",
        True,
        _maps(block, tokens),
        lambda: partial(block.forward, tokens),
    )


def _maps(block: TransformerBlock, tokens: Tensor) -> Run:
    return partial(block.forward_with_attention, tokens)


def _maps_by_window(block: TransformerBlock, tokens: Tensor) -> list[Tensor]:
    return [block.forward_with_attention(one)[1] for one in tokens.split(1)]


def _forward_with_maps(
    block: TransformerBlock, tokens: Float[Tensor, "windows tokens width"]
) -> tuple[Tensor, Float[Tensor, "windows heads tokens tokens"]]:
    query, key, value = block.query_key_value(tokens)
    weights = (query @ (key * block.scale).transpose(-1, -2)).softmax(-1, dtype=torch.float32)
    tokens = tokens + block.output(weights.to(value.dtype) @ value)
    return tokens + block.feed_forward(tokens), weights


def _maps_at_once(block: TransformerBlock, tokens: Float[Tensor, "windows tokens width"]) -> Tensor:
    return _forward_with_maps(block, tokens)[1].mean(1)


def _keep_all_maps(tower: ImageEncoder, batch: Float[Tensor, "windows 3 height width"]) -> Tensor:
    tokens, maps = tower.embed(batch), []
    for block in tower.blocks[:-1]:
        tokens, weights = _forward_with_maps(block, tokens)
        maps.append(weights)
    return torch.stack(maps).mean((0, 2))


def _crops(batch: Tensor, engine: SegmentationEngine) -> Float[Tensor, "crops 3 side side"]:
    side = engine.config.purification.crop_size
    small = torch.nn.functional.interpolate(batch.float(), (side, side), mode="bilinear").to(batch.dtype)
    return small.repeat(CROPS_PER_WINDOW, 1, 1, 1)


def _compiled(tower: ImageEncoder, batch: Float[Tensor, "windows 3 height width"]) -> Run:
    blocks = [torch.compile(block.forward, dynamic=False) for block in tower.blocks]

    def run() -> Tensor:
        tokens = tower.embed(batch)
        for block in blocks:
            tokens = block(tokens)
        return tokens

    return run


def _bfloat16(workload: Workload, batch: Float[Tensor, "windows 3 height width"]) -> Run:
    tower = ImageEncoder(copy.deepcopy(workload.clip.model.visual).to(torch.bfloat16))
    return partial(encode, tower, batch.bfloat16())


def _channels_last(workload: Workload, batch: Float[Tensor, "windows 3 height width"]) -> Run:
    visual = copy.deepcopy(workload.clip.model.visual)
    visual.conv1.to(memory_format=torch.channels_last)
    return partial(ImageEncoder(visual).embed, batch.contiguous(memory_format=torch.channels_last))
