"""Levers on speed, each beside the same work without it: which pay on this machine and which do not."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ovss_core.encoders.blocks import TransformerBlock
from ovss_core.encoders.image_encoder import ImageEncoder
from ovss_core.inference.decoding import decode_image
from pipelines.measurement.engine_times import cut_windows
from pipelines.measurement.timing import median_ratio, take_turns
from pipelines.measurement.workload import Workload

Run = Callable[[], object]


@dataclass(frozen=True)
class Lever:
    """One lever.

    Attributes:
        name: What is done.
        over: Its time over that of the same work without it; below 1 it pays. None: it cannot be had here.
        reason: Why it cannot be had.
    """

    name: str
    over: float | None
    reason: str = ""


def lever_rows(workload: Workload) -> list[Lever]:
    """Measure every lever on the image tower, over the windows of SFP's protocol."""
    engine = workload.engine("sfp", "freecp", 150)
    _, _, cut = cut_windows(workload, "sfp")
    with torch.inference_mode():
        pixels = engine.normalise(np.concatenate(cut)).to(engine.encoder.dtype)
        tower = engine.encoder
        batch = pixels[: engine.window_batch]
        tokens, block = tower.embed(batch), tower.blocks[0]
        plain = partial(_encode, tower, batch)
        levers: dict[str, tuple[Run, Callable[[], Run]]] = {
            "torch.compile of the blocks": (plain, lambda: _compiled(tower, batch)),
            "bfloat16": (plain, lambda: _bfloat16(workload, batch)),
            "channels-last patch embedding": (
                partial(tower.embed, batch),
                lambda: _channels_last(workload, batch),
            ),
            "one window a batch": (plain, lambda: lambda: [_encode(tower, one) for one in batch.split(1)]),
            "8 windows a batch": (plain, lambda: lambda: [_encode(tower, few) for few in batch.split(8)]),
            "no attention maps (FreeCP needs them)": (
                partial(block.forward_with_attention, tokens),
                lambda: partial(block.forward, tokens),
            ),
            "attention maps of the whole batch at once": (
                partial(block.forward_with_attention, tokens),
                lambda: partial(_maps_at_once, block, tokens),
            ),
            "decoding in a thread beside the encoder": (
                lambda: [_decode(workload), plain()],
                lambda: partial(_decode_beside, workload, plain),
            ),
        }
        if not workload.config.compiled:
            del levers["torch.compile of the blocks"]
        return [
            _measure(name, base, build, workload.config.repeats) for name, (base, build) in levers.items()
        ]


def _measure(name: str, base: Run, build: Callable[[], Run], repeats: int) -> Lever:
    try:
        seconds = take_turns({"without": base, "with": build()}, repeats)
    except (RuntimeError, OSError) as error:  # no compiler, or no kernel for the format
        return Lever(name, None, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Lever(name, median_ratio(seconds["with"], seconds["without"]))


def _encode(tower: ImageEncoder, batch: Float[Tensor, "windows 3 height width"]) -> Tensor:
    tokens = tower.embed(batch)
    for block in tower.blocks:
        tokens = block.forward(tokens)
    return tokens


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
    return partial(_encode, tower, batch.bfloat16())


def _channels_last(workload: Workload, batch: Float[Tensor, "windows 3 height width"]) -> Run:
    visual = copy.deepcopy(workload.clip.model.visual)
    visual.conv1.to(memory_format=torch.channels_last)
    return partial(ImageEncoder(visual).embed, batch.contiguous(memory_format=torch.channels_last))


def _maps_at_once(block: TransformerBlock, tokens: Float[Tensor, "windows tokens width"]) -> Tensor:
    query, key, value = block.query_key_value(tokens)
    weights = (query @ (key * block.scale).transpose(-1, -2)).softmax(-1, dtype=torch.float32)
    weights.mean(1)
    tokens = tokens + block.output(weights.to(value.dtype) @ value)
    return tokens + block.feed_forward(tokens)


def _decode(workload: Workload) -> list[np.ndarray]:
    return [decode_image(data, 100_000_000) for data in workload.files]


def _decode_beside(workload: Workload, encode: Run) -> None:
    with ThreadPoolExecutor(1) as pool:
        decoded = pool.submit(_decode, workload)
        encode()
        decoded.result()
