"""Levers on what follows the image tower, and on how pictures and words reach it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import torch

from ovss_core.clip.text import TextEncoder
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.images.stitch import stitch_matrix
from pipelines.benchmark.encoder_levers import encode
from pipelines.benchmark.engine_times import batches_of, stitcher_of
from pipelines.benchmark.levers import Comparison
from pipelines.benchmark.window_loop import stitch_windows
from pipelines.benchmark.workload import Workload, decode_pictures

CLASSES = 150


def engine_levers(workload: Workload) -> Iterator[Comparison]:
    """Compare forms of stitching, batching, decoding and text encoding."""
    engine, pictures = workload.engine("sfp", "freecp", CLASSES), workload.pictures
    yield from _stitching_levers(workload, engine)
    if len(pictures) > 1:
        yield Comparison(
            f"images in one call of {len(pictures)}, not one by one",
            True,
            lambda: [engine.segment([picture]) for picture in pictures],
            lambda: partial(engine.segment, pictures),
        )
    batch = batches_of(engine, engine.gather(pictures))[0]
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
        lambda: _through_arrow([picture.tobytes() for picture in pictures]),
        lambda: lambda: _through_arrow(workload.files),
    )
    label, words = partial(engine.segment, pictures[:1]), TextEncoder(workload.clip, workload.device)
    yield Comparison(
        "text encoded once a run, not once an image (a vocabulary of one phrase)",
        True,
        lambda: (label(), words.encode_phrases(["cat"])),
        lambda: label,
    )


def _stitching_levers(workload: Workload, engine: SegmentationEngine) -> Iterator[Comparison]:
    [(wave, proposals)] = engine.propose_all(engine.gather(workload.pictures[:1]))
    [layout], [size] = wave.layouts, wave.sizes
    grid, kept = wave.placement.grid, proposals.maps.shape[1]
    stitcher = stitcher_of(engine, proposals)
    every = torch.rand(len(wave.pixels), CLASSES, grid[0] * grid[1], device=engine.device)
    tiled, tiled_every = stitcher.tile(proposals.maps), stitcher.tile(every)

    def anew(forget: bool) -> None:
        if forget:
            stitch_matrix.cache_clear()
        stitcher_of(engine, proposals).stitch(tiled)

    yield Comparison(
        f"stitching {kept} maps as two matrices, not window by window",
        True,
        lambda: stitch_windows(proposals.maps.unflatten(2, grid).unbind(), layout, size),
        lambda: partial(stitcher.stitch, tiled),
    )
    yield Comparison(
        "stitching matrices remembered by size", True, partial(anew, True), lambda: partial(anew, False)
    )
    yield Comparison(
        f"only the {kept} kept classes at full size, not all {CLASSES}",
        True,
        lambda: stitcher.stitch(tiled_every).argmax(1),
        lambda: lambda: stitcher.stitch(tiled).argmax(1),
    )


def _decode_beside(workload: Workload, encode_batch: partial[torch.Tensor]) -> None:
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
