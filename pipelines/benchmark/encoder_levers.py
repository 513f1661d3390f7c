"""Levers on the image tower."""

import copy
from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import TraceRequest
from pipelines.benchmark.engine_times import batches_of
from pipelines.benchmark.levers import Comparison, Run
from pipelines.benchmark.workload import Workload

CROPS_PER_WINDOW = 4
Windows = Float[Tensor, "windows 3 height width"]


def encoder_levers(workload: Workload) -> Iterator[Comparison]:
    """Compare forms of the image tower, over the windows of SFP's protocol."""
    engine = workload.engine("sfp", "freecp", 150)
    tower, visual = engine.encoder, workload.clip.model.visual
    batches = batches_of(engine, engine.gather(workload.pictures))
    batch, pixels = batches[0], torch.cat(batches)
    yield from _batch_levers(tower, pixels, engine.window_batch)
    tokens, block = tower.embed(batch), tower.blocks[0]
    yield Comparison(
        "a running mean of the attention, not the maps of all heads and blocks",
        True,
        partial(_keep_all_maps, tower, batch),
        lambda: partial(tower.trace, batch, TraceRequest(mean_attention=True)),
    )
    yield Comparison(
        "scaled_dot_product_attention, no maps (without FreeCP)",
        True,
        partial(block.forward_with_attention, tokens),
        lambda: partial(block.forward, tokens),
    )
    network = visual.transformer.resblocks[0]
    yield Comparison(
        f"feed-forward network with {type(network.mlp.gelu).__name__} in one pass",
        True,
        lambda: network.mlp(network.ln_2(tokens)),
        lambda: partial(block.feed_forward, tokens),
    )
    side = (engine.config.purification.crop_size,) * 2
    small = torch.nn.functional.interpolate(batch.float(), side, mode="bilinear").to(batch.dtype)
    crops = small.repeat(CROPS_PER_WINDOW, 1, 1, 1)
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


def encode(tower: ImageEncoder, windows: Windows) -> Tensor:
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


def _keep_all_maps(tower: ImageEncoder, batch: Windows) -> Tensor:
    tokens, maps = tower.embed(batch), []
    for block in tower.blocks[:-1]:
        query, key, value = block.query_key_value(tokens)
        weights = (query @ (key * block.scale).transpose(-1, -2)).softmax(-1, dtype=torch.float32)
        tokens = tokens + block.output(weights.to(value.dtype) @ value)
        tokens = tokens + block.feed_forward(tokens)
        maps.append(weights)
    return torch.stack(maps).mean((0, 2))


def _compiled(tower: ImageEncoder, batch: Windows) -> Run:
    blocks = [torch.compile(block.forward, dynamic=False) for block in tower.blocks]

    def run() -> Tensor:
        tokens = tower.embed(batch)
        for block in blocks:
            tokens = block(tokens)
        return tokens

    return run


def _bfloat16(workload: Workload, batch: Windows) -> Run:
    tower = ImageEncoder(copy.deepcopy(workload.clip.model.visual).to(torch.bfloat16))
    return partial(encode, tower, batch.bfloat16())


def _channels_last(workload: Workload, batch: Windows) -> Run:
    visual = copy.deepcopy(workload.clip.model.visual)
    visual.conv1.to(memory_format=torch.channels_last)
    return partial(ImageEncoder(visual).embed, batch.contiguous(memory_format=torch.channels_last))
