"""The engine beside the plain encoder: stage by stage, end to end, and against the one-window loop."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ovss_core.class_purification.class_maps import WindowBatch
from ovss_core.class_purification.purifier import ClassPurifier
from ovss_core.config import PurificationConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.proposal import Proposals
from ovss_core.engine.waves import Wave
from ovss_core.images.resize import normalize
from ovss_core.images.stitch import Stitcher
from pipelines.benchmark.timing import median_ratio, peak_megabytes, take_turns
from pipelines.benchmark.window_loop import encode_window, label_picture, score_window
from pipelines.benchmark.workload import WINDOWS, Workload, decode_pictures
from pipelines.label.masks import encode_mask

HOSTS = ("clearclip", "sfp")
PURIFICATIONS = ("none", "freecp")
LOOP_CLASSES = (150, 1200)
FLOOR, ENGINE = "floor: encode_image", "engine, end to end"
Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One measured thing: median seconds for all pictures, as a share of the floor, and peak memory."""

    name: str
    seconds: float
    floor_share: float
    peak_megabytes: float | None = None


def gather_all(engine: SegmentationEngine, pictures: Sequence[np.ndarray]) -> list[Wave]:
    """Cut the windows of all pictures."""
    return list(engine.gather(pictures))


def batches_of(engine: SegmentationEngine, waves: Iterable[Wave]) -> list[Tensor]:
    """Normalize the windows of waves, in the tower's number format and batches of the engine's size."""
    return [
        normalize(wave.pixels.cut_windows(part), *engine.normalization).to(engine.encoder.dtype)
        for wave in waves
        for part in wave.parts(engine.window_batch)
    ]


def floor(workload: Workload, protocol: str) -> Run:
    """Return the floor: open_clip's own `encode_image` on all windows, in the engine's batches."""
    engine = workload.engine("clearclip", "none", 21, protocol)
    batches = batches_of(engine, engine.gather(workload.pictures))

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            _plain_encode(workload, engine, batch)

    return run


def _plain_encode(workload: Workload, engine: SegmentationEngine, batch: Tensor) -> Tensor:
    visual = workload.clip.model.visual
    if tuple(batch.shape[2:]) == tuple(visual.image_size):
        encoded: Tensor = visual(batch)
        return encoded
    # open_clip has no positions for other sizes than the one it was built for
    return engine.encoder.project(visual.transformer(engine.encoder.embed(batch))[:, :1])


def stage_rows(workload: Workload) -> list[Row]:
    """Time every stage of SFP with FreeCP at 150 classes by SFP's windows, each alone."""
    with torch.inference_mode():
        candidates = {FLOOR: floor(workload, "sfp"), **_stages(workload)}
        seconds = take_turns(candidates, workload.config.repeats)
        peaks = {name: peak_megabytes(run) for name, run in candidates.items()}
    return [
        Row(name, statistics.median(times), median_ratio(times, seconds[FLOOR]), peaks[name])
        for name, times in seconds.items()
    ]


def _stages(workload: Workload) -> dict[str, Run]:
    """Return what is timed alone; the refinement takes every class that has a region, redundancy only some."""
    engine = workload.engine("sfp", "freecp", 150)
    config = engine.config
    unambiguous = engine.with_vocabulary(
        engine.text, replace(config, purification=replace(config.purification, ambiguity=False))
    )
    prepared = [engine.prepare(picture) for picture in workload.pictures]
    waves = gather_all(engine, workload.pictures)
    pixels = batches_of(engine, waves)
    encoder, request = engine.encoder, engine.request
    traces = [encoder.trace(batch, request) for batch in pixels]
    batches = [_purification_input(engine, wave) for wave in waves]
    proposals = [found for _, found in engine.propose_all(waves)]
    plain = [found for _, found in unambiguous.propose_all(waves)]
    stitching = [
        (stitcher, stitcher.tile(found.maps))
        for found in proposals
        for stitcher in [stitcher_of(engine, found)]
    ]
    masks = [image.label_map for image in engine.segment(workload.pictures)]

    def purify(redundancy: bool, ambiguity: bool) -> Run:
        parts = PurificationConfig(redundancy=redundancy, ambiguity=ambiguity)
        purifier = ClassPurifier(parts, engine.text, "none", workload.device)
        return lambda: [purifier.purify(batch, engine.room) for batch in batches]

    return {
        "decode": lambda: decode_pictures(workload.files),
        "resize": lambda: [engine.prepare(picture) for picture in workload.pictures],
        "windows": lambda: batches_of(engine, engine.gather(prepared)),
        "encoder, blocks 1 to L-1 with attention": lambda: [
            encoder.trace(batch, request) for batch in pixels
        ],
        "SFP head": lambda: [engine.heads[0].features(encoder, trace) for trace in traces],
        "refinement of every class with a region, scores included": purify(False, False),
        "redundancy, scores and refinement included": purify(True, False),
        "ambiguity groups, these three included": purify(True, True),
        "ambiguity crops": lambda: [engine.finisher.winners(found) for found in proposals],
        "stitching": lambda: [stitcher.stitch(tiled) for stitcher, tiled in stitching],
        "label assignment, stitching included": lambda: [unambiguous.finish(found) for found in plain],
        "mask encoding": lambda: [encode_mask(mask) for mask in masks],
        ENGINE: lambda: engine.segment(workload.pictures),
    }


def stitcher_of(engine: SegmentationEngine, proposals: Proposals) -> Stitcher:
    """Return the stitcher of the images of one wave, at their own sizes."""
    grid = engine.encoder.grid_of(proposals.layouts[0].window_size)
    return Stitcher(proposals.layouts, grid, proposals.sizes, engine.device)


def _purification_input(engine: SegmentationEngine, wave: Wave) -> WindowBatch:
    encoded = engine.encode(wave)
    assert encoded.attention is not None
    return WindowBatch(encoded.features, encoded.attention, wave.placement)


def end_to_end_rows(workload: Workload) -> list[dict[str, object]]:
    """Time the engine for hosts x purification x vocabulary sizes, by both papers' windows."""
    rows: list[dict[str, object]] = []
    for protocol in WINDOWS:
        runs: dict[str, Run] = {"floor": floor(workload, protocol)}
        settings = [
            (host, purify, classes)
            for host in HOSTS
            for purify in PURIFICATIONS
            for classes in workload.config.vocabularies
        ]
        for setting in settings:
            runs[str(setting)] = partial(workload.engine(*setting, protocol).segment, workload.pictures)
        seconds = take_turns(runs, workload.config.repeats)
        for host, purify, classes in settings:
            times = seconds[str((host, purify, classes))]
            rows.append(
                {
                    "windows": protocol,
                    "host": host,
                    "purify": purify,
                    "classes": classes,
                    "images_a_second": len(workload.pictures) / statistics.median(times),
                    "over_floor": median_ratio(times, seconds["floor"]),
                }
            )
    return rows


def headline_ratios(workload: Workload) -> dict[str, float]:
    """Measure the engine and the one-window loop at 150 classes over the floor, and 1,200 classes over 21."""
    engines = {classes: workload.engine("sfp", "freecp", classes) for classes in (21, 150, 1200)}
    runs: dict[str, Run] = {"floor": floor(workload, "sfp")}
    for classes, engine in engines.items():
        runs[str(classes)] = partial(engine.segment, workload.pictures)
    runs["loop"] = lambda: [label_picture(engines[150], picture) for picture in workload.pictures]
    seconds = take_turns(runs, workload.config.repeats)
    return {
        "engine_over_floor": median_ratio(seconds["150"], seconds["floor"]),
        "loop_over_floor": median_ratio(seconds["loop"], seconds["floor"]),
        "classes_1200_over_21": median_ratio(seconds["1200"], seconds["21"]),
    }


@torch.inference_mode()
def loop_ratios(workload: Workload) -> dict[str, float]:
    """Measure the one-window loop over the engine: refinement with redundancy, and the blocks below the head.

    `loop_over_refinement_K_without_boxes` leaves the loop's box search out, but not ours.
    """
    ratios: dict[str, float] = {}
    engine = workload.engine("sfp", "freecp", 150)
    waves = gather_all(engine, workload.pictures)
    windows = [window for batch in batches_of(engine, waves) for window in batch.split(1)]
    batches = [_purification_input(engine, wave) for wave in waves]
    features = torch.cat([batch.features for batch in batches])
    traces = [encode_window(engine, window) for window in windows]
    for classes in LOOP_CLASSES:
        text = workload.text(classes)
        purifier = ClassPurifier(PurificationConfig(ambiguity=False), text, "none", workload.device)
        logits = 100 * features @ text.phrase_embeddings.to(features).T

        def score(find_boxes: bool, logits: Tensor = logits) -> None:
            for (trace, maps), scores in zip(traces, logits, strict=True):
                score_window(maps, scores, trace.grid, find_boxes)

        runs: dict[str, Run] = {
            "ours": partial(_purify_all, purifier, batches, engine),
            "loop": partial(score, True),
            "without_boxes": partial(score, False),
        }
        seconds = take_turns(runs, workload.config.repeats)
        name = f"loop_over_refinement_{classes}"
        ratios[name] = median_ratio(seconds["loop"], seconds["ours"])
        ratios[f"{name}_without_boxes"] = median_ratio(seconds["without_boxes"], seconds["ours"])
    encoders: dict[str, Run] = {
        "loop": lambda: [encode_window(engine, window) for window in windows],
        "ours": lambda: [engine.encoder.trace(batch, engine.request) for batch in batches_of(engine, waves)],
    }
    seconds = take_turns(encoders, 2)
    return ratios | {"loop_over_encoder": median_ratio(seconds["loop"], seconds["ours"])}


def _purify_all(purifier: ClassPurifier, batches: Iterable[WindowBatch], engine: SegmentationEngine) -> None:
    for batch in batches:
        purifier.purify(batch, engine.room)
