"""Levers on what follows the image tower, and on how pictures and words reach it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from jaxtyping import Float
from ovss_core.class_purification.affinity import ROUNDS, balance, spread
from ovss_core.inference.stitching import Stitcher, stitch_matrix
from torch import Tensor

from ovss_core.encoders.text_encoder import TEMPLATES, encode_prompts
from ovss_core.engine.engine import SegmentationEngine
from pipelines.measurement.encoder_levers import encode
from pipelines.measurement.engine_times import cut_windows
from pipelines.measurement.levers import Comparison
from pipelines.measurement.stage_parts import kept_maps
from pipelines.measurement.workload import PRESENT_CLASSES, Workload, decode_pictures

CLASSES = 150


def engine_levers(workload: Workload) -> Iterator[Comparison]:
    """Compare forms of refinement, stitching, decoding and text encoding."""
    engine = workload.engine("sfp", "freecp", CLASSES)
    yield from _purification_levers(workload, engine)
    yield from _stitching_levers(workload, engine)
    yield from _transport_levers(workload, engine)


def _purification_levers(workload: Workload, engine: SegmentationEngine) -> Iterator[Comparison]:
    windows = cut_windows(workload, "sfp")[2][0]
    _, attention = engine.encode_windows(windows)
    assert attention is not None
    yield _balance_lever(attention, PRESENT_CLASSES)
    yield _balance_lever(attention, CLASSES)


def _balance_lever(attention: Float[Tensor, "windows patches patches"], count: int) -> Comparison:
    maps = torch.rand(len(attention), count, attention.shape[1], device=attention.device)
    return Comparison(
        f"attention balanced and applied as two vectors, not as matrices ({count} maps a window)",
        True,
        lambda: maps @ _transfer_matrix(attention),
        lambda: lambda: spread(balance(attention), maps),
    )


def _transfer_matrix(attention: Float[Tensor, "windows patches patches"]) -> Tensor:
    for _ in range(ROUNDS):
        attention = attention / attention.sum(1, keepdim=True)
        attention = attention / attention.sum(2, keepdim=True)
    transfer = (attention + attention.mT) / 2
    return transfer @ transfer


def _stitching_levers(workload: Workload, engine: SegmentationEngine) -> Iterator[Comparison]:
    [proposal] = engine.propose(workload.pictures[:1])
    stitcher, kept = kept_maps(engine, proposal)
    whole = torch.rand(CLASSES, *kept.shape[1:], device=engine.device)
    tiled, tiled_whole = stitcher.side_by_side(kept), stitcher.side_by_side(whole)
    separable = partial(stitcher.stitch, tiled)
    yield Comparison(
        f"stitching {len(kept)} maps as two matrices, not window by window",
        True,
        partial(_stitch_windows, stitcher, kept),
        lambda: separable,
    )
    yield Comparison(
        "stitching matrices remembered by size",
        True,
        partial(_stitch_forgetful, stitcher, tiled),
        lambda: separable,
    )
    yield Comparison(
        f"only the {len(kept)} kept classes at full size, not all {CLASSES}",
        True,
        lambda: stitcher.stitch(tiled_whole).argmax(0),
        lambda: lambda: separable().argmax(0),
    )


def _stitch_forgetful(stitcher: Stitcher, tiled: Float[Tensor, "maps height width"]) -> Tensor:
    stitch_matrix.cache_clear()
    return stitcher.stitch(tiled)


def _stitch_windows(stitcher: Stitcher, maps: Float[Tensor, "maps windows rows columns"]) -> Tensor:
    layout = stitcher.layout
    total = maps.new_zeros(len(maps), *layout.image_size)
    count = maps.new_zeros(layout.image_size)
    height, width = layout.window_size
    upsampled = F.interpolate(maps.transpose(0, 1), size=(height, width), mode="bilinear")
    for (top, left), window in zip(layout.origins, upsampled, strict=True):
        total[:, top : top + height, left : left + width] += window
        count[top : top + height, left : left + width] += 1
    return F.interpolate((total / count)[None], size=stitcher.size, mode="bilinear")[0]


def _transport_levers(workload: Workload, engine: SegmentationEngine) -> Iterator[Comparison]:
    _, _, cut = cut_windows(workload, "sfp")
    batch = engine.normalise(np.concatenate(cut)[: engine.window_batch]).to(engine.encoder.dtype)
    beside = partial(encode, engine.encoder, batch)
    yield Comparison(
        "decoding in a thread beside the encoder",
        True,
        lambda: (decode_pictures(workload.files), beside()),
        lambda: lambda: _decode_beside(workload, beside),
    )
    yield Comparison(
        "files between stages, not decoded pixels (Arrow, written and read)",
        True,
        lambda: _through_arrow([picture.tobytes() for picture in workload.pictures]),
        lambda: lambda: _through_arrow(workload.files),
    )
    label = partial(engine.segment, workload.pictures[:1])
    prompts, device = [template.format("cat") for template in TEMPLATES], torch.device(workload.device)
    workload.clip.model.to(device)
    yield Comparison(
        "text encoded once a run, not once an image (a vocabulary of one phrase)",
        True,
        lambda: (label(), encode_prompts(workload.clip, prompts, device)),
        lambda: label,
    )


def _decode_beside(workload: Workload, encode_batch: partial[Tensor]) -> None:
    with ThreadPoolExecutor(1) as pool:
        decoded = pool.submit(decode_pictures, workload.files)
        encode_batch()
        decoded.result()


def _through_arrow(images: list[bytes]) -> list[bytes]:
    table = pa.table({"image": pa.array(images, pa.binary())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    read: list[bytes] = pa.ipc.open_stream(sink.getvalue()).read_all()["image"].to_pylist()
    return read
