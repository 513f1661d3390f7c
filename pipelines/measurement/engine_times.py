"""The engine beside the plain encoder: stage by stage, end to end, and against the one-window loop."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.class_purification.purifier import ClassPurifier
from ovss_core.config import PurificationConfig
from ovss_core.engine.engine import PreparedImage, SegmentationEngine
from ovss_core.inference.windows import WindowLayout
from pipelines.masks import encode_mask
from pipelines.measurement.stage_parts import purification_parts, stitching_part
from pipelines.measurement.timing import median_ratio, peak_megabytes, take_turns
from pipelines.measurement.window_loop import encode_window, label_picture, score_window
from pipelines.measurement.workload import WINDOWS, Workload, decode_pictures

HOSTS = ("clearclip", "sfp")
PURIFICATIONS = ("none", "freecp")
LOOP_CLASSES = (150, 1200)
FLOOR, ENGINE = "floor: encode_image", "engine, end to end"


@dataclass(frozen=True)
class Row:
    """One measured thing: median seconds for all pictures, as a share of the floor, and peak memory."""

    name: str
    seconds: float
    floor_share: float
    peak_megabytes: float | None = None


def cut_windows(
    workload: Workload, protocol: str
) -> tuple[list[PreparedImage], list[WindowLayout], list[np.ndarray]]:
    """Prepare the pictures and cut their windows by a protocol."""
    engine = workload.engine("clearclip", "none", 21, protocol)
    prepared = [engine.prepare(picture) for picture in workload.pictures]
    layouts = [
        WindowLayout.of(image.pixels.shape[0], image.pixels.shape[1], WINDOWS[protocol]) for image in prepared
    ]
    return (
        prepared,
        layouts,
        [layout.cut(image.pixels) for image, layout in zip(prepared, layouts, strict=True)],
    )


def floor(workload: Workload, protocol: str) -> Callable[[], None]:
    """Return the floor: open_clip's own `encode_image` on all windows, batched.

    Windows off the tower's base size need another positional table; a copy of the tower gets it.
    """
    engine = workload.engine("clearclip", "none", 21, protocol)
    _, _, cut = cut_windows(workload, protocol)
    pixels = engine.normalise(np.concatenate(cut)).to(engine.encoder.dtype)
    batches = pixels.split(engine.window_batch)
    encode = partial(_plain_encode, workload, engine)

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                encode(batch)

    return run


def _plain_encode(workload: Workload, engine: SegmentationEngine, batch: Tensor) -> Tensor:
    visual = workload.clip.model.visual
    if tuple(batch.shape[2:]) == tuple(visual.image_size):
        encoded: Tensor = visual(batch)
        return encoded
    tokens = visual.transformer(engine.encoder.embed(batch))
    return engine.encoder.project(tokens[:, :1])


def stage_rows(workload: Workload) -> list[Row]:
    """Time every stage of SFP with FreeCP at 150 classes by SFP's windows, each alone.

    Refinement alone takes every class with a region; redundancy purification leaves those out that cannot be kept.
    """
    engine = workload.engine("sfp", "freecp", 150)
    prepared, layouts, cut = cut_windows(workload, "sfp")
    windows = np.concatenate(cut)
    features, attention = engine.encode_windows(windows)
    assert attention is not None
    batch = engine.purification_input(features, attention, layouts)
    pixels = engine.normalise(windows)
    proposals = engine.propose(prepared)
    winners = engine.resolver.winners(proposals)
    masks = [segmentation.label_map for segmentation in engine.resolve(proposals)]
    redundancy = _purifier(workload, 150, ambiguity=False)
    purifier = _purifier(workload, 150, ambiguity=True)
    trace = engine.encoder.trace(pixels[: engine.window_batch], engine.request)
    part = len(windows) / len(pixels[: engine.window_batch])
    purification = purification_parts(batch, workload.text(150))
    candidates: dict[str, Callable[[], object]] = {
        FLOOR: floor(workload, "sfp"),
        "decode": lambda: decode_pictures(workload.files),
        "resize": lambda: [engine.prepare(picture) for picture in workload.pictures],
        "windows": lambda: engine.normalise(
            np.concatenate([lay.cut(im.pixels) for im, lay in zip(prepared, layouts, strict=True)])
        ),
        "encoder, blocks 1 to L-1 with attention": lambda: [
            engine.encoder.trace(group, engine.request) for group in pixels.split(engine.window_batch)
        ],
        "SFP head": lambda: engine.head.features(engine.encoder, trace),
        **purification,
        "redundancy, scores and refinement included": lambda: redundancy.purify(batch),
        "ambiguity groups, these three included": lambda: purifier.purify(batch),
        "ambiguity crops": lambda: engine.resolver.winners(proposals),
        "stitching": stitching_part(engine, proposals),
        "label assignment, stitching included": lambda: [
            engine.resolver.label(proposal, won) for proposal, won in zip(proposals, winners, strict=True)
        ],
        "mask encoding": lambda: [encode_mask(mask) for mask in masks],
        ENGINE: lambda: engine.segment(workload.pictures),
    }
    with torch.inference_mode():
        seconds = take_turns(candidates, workload.config.repeats)
        peaks = {name: peak_megabytes(run) for name, run in candidates.items()}
    seconds["SFP head"] = [value * part for value in seconds["SFP head"]]
    base = seconds[FLOOR]
    return [
        Row(name, statistics.median(times), median_ratio(times, base), peaks[name])
        for name, times in seconds.items()
    ]


def _purifier(workload: Workload, classes: int, ambiguity: bool) -> ClassPurifier:
    config = PurificationConfig(ambiguity=ambiguity)
    return ClassPurifier(config, workload.text(classes), "none", workload.device)


def end_to_end_rows(workload: Workload) -> list[dict[str, object]]:
    """Time the engine for hosts x purification x vocabulary sizes, by both papers' windows."""
    rows: list[dict[str, object]] = []
    for protocol in WINDOWS:
        runs: dict[str, Callable[[], object]] = {"floor": floor(workload, protocol)}
        settings = [
            (host, purify, classes)
            for host in HOSTS
            for purify in PURIFICATIONS
            for classes in workload.config.vocabularies
        ]
        for host, purify, classes in settings:
            engine = workload.engine(host, purify, classes, protocol)
            runs[f"{host} {purify} {classes}"] = partial(engine.segment, workload.pictures)
        seconds = take_turns(runs, workload.config.repeats)
        for host, purify, classes in settings:
            times = seconds[f"{host} {purify} {classes}"]
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
    runs: dict[str, Callable[[], object]] = {"floor": floor(workload, "sfp")}
    for classes, engine in engines.items():
        runs[str(classes)] = partial(engine.segment, workload.pictures)
    runs["loop"] = partial(_label_all, workload, engines[150])
    seconds = take_turns(runs, workload.config.repeats)
    return {
        "engine_over_floor": median_ratio(seconds["150"], seconds["floor"]),
        "loop_over_floor": median_ratio(seconds["loop"], seconds["floor"]),
        "classes_1200_over_21": median_ratio(seconds["1200"], seconds["21"]),
    }


def _label_all(workload: Workload, engine: SegmentationEngine) -> None:
    for picture in workload.pictures:
        label_picture(engine, engine.prepare(picture), engine.text.phrase_embeddings.to(engine.device))


def loop_ratios(workload: Workload) -> dict[str, float]:
    """Measure the one-window loop over the engine: refinement with redundancy, and the whole stage 1.

    `loop_over_refinement_K` includes a flood fill in place of OpenCV's contours; the same with `_without_boxes`
    leaves the loop's box search out (but not ours), so the truth with OpenCV lies between the two.
    """
    ratios: dict[str, float] = {}
    engine = workload.engine("sfp", "freecp", 150)
    _, layouts, cut = cut_windows(workload, "sfp")
    with torch.inference_mode():
        features, attention = engine.encode_windows(np.concatenate(cut))
        assert attention is not None
        batch = engine.purification_input(features, attention, layouts)
        pixels = engine.normalise(np.concatenate(cut))
        traces = [encode_window(engine.encoder, window[None])[1] for window in pixels]
        for classes in LOOP_CLASSES:
            purifier = _purifier(workload, classes, ambiguity=False)
            logits = 100 * (features @ F.normalize(workload.embeddings[:classes], dim=-1).to(features).T)
            runs: dict[str, Callable[[], object]] = {
                "ours": partial(purifier.purify, batch),
                "loop": partial(_score_all, traces, logits, batch.grid, True),
                "without_boxes": partial(_score_all, traces, logits, batch.grid, False),
            }
            seconds = take_turns(runs, workload.config.repeats)
            ratios[f"loop_over_refinement_{classes}"] = median_ratio(seconds["loop"], seconds["ours"])
            ratios[f"loop_over_refinement_{classes}_without_boxes"] = median_ratio(
                seconds["without_boxes"], seconds["ours"]
            )
        ratios["loop_over_encoder"] = _loop_over_encoder(engine, pixels)
    return ratios


def _score_all(traces: list[list[Tensor]], logits: Tensor, grid: tuple[int, int], find_boxes: bool) -> None:
    for maps, scores in zip(traces, logits, strict=True):
        score_window(maps, scores, grid, find_boxes)


def _loop_over_encoder(engine: SegmentationEngine, pixels: Tensor) -> float:
    """Encode windows one by one with all maps kept, over the engine's batched blocks."""
    seconds = take_turns(
        {
            "loop": lambda: [encode_window(engine.encoder, window[None]) for window in pixels],
            "ours": lambda: engine.encoder.trace(pixels, engine.request),
        },
        2,
    )
    return median_ratio(seconds["loop"], seconds["ours"])
