"""Print what whole calls of the engine take on a GPU: `python -m tests.gpu.engine_times --images PHOTOGRAPHS`.

Images a second of one process without Ray, pictures decoded and resized beforehand; and with `--profile` where the device's
time goes, kernel by kernel, and for how much of the time it has nothing to do.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ovss_core.config import ModelConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.trial import trust_kernels
from ovss_core.engine.waves import PreparedImage
from pipelines.benchmark.options import BenchmarkConfig
from pipelines.benchmark.timing import seconds_of
from pipelines.benchmark.workload import Workload, load_workload

SETTINGS = (
    ("clearclip", "none", 21),
    ("sfp", "none", 150),
    ("sfp", "freecp", 21),
    ("sfp", "freecp", 150),
)
_LONGEST_NAME, _PROFILED = 90, 512


def measure(workload: Workload, batches: Sequence[int | None], turns: int) -> None:
    """Print images a second of each setting, by windows of a batch."""
    for host, purify, classes in SETTINGS:
        for batch in batches:
            engine = _engine(workload, host, purify, classes, batch)
            prepared = _prepared(engine, workload)
            found = engine.segment(prepared)
            seconds = [seconds_of(partial(engine.segment, prepared)) for _ in range(turns)]
            kept = statistics.mean(len(image.kept) for image in found)
            boxes = statistics.mean(
                sum(box.winner is not None for group in image.groups for box in group.boxes)
                for image in found
            )
            rates = ", ".join(f"{len(prepared) / taken:.0f}" for taken in sorted(seconds))
            print(
                f"{host:9} {purify:6} {classes:5} words, windows by {engine.window_batch:3}: {rates} images/s; "
                f"{kept:.1f} kept, {boxes:.1f} regions",
                flush=True,
            )


def show_kernels(workload: Workload, batch: int | None, rows: int) -> None:
    """Print where the device's time goes with SFP, FreeCP and 150 words."""
    engine = _engine(workload, "sfp", "freecp", 150, batch)
    prepared = _prepared(engine, workload)[:_PROFILED]
    engine.segment(prepared)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as taken:
        engine.segment(prepared)
        torch.cuda.synchronize()
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    spans = []
    for event in taken.events():
        if event.device_type.name == "CUDA":
            name = event.name[:_LONGEST_NAME]
            total[name] += event.time_range.elapsed_us()
            count[name] += 1
            spans.append((event.time_range.start, event.time_range.end))
    images = len(prepared)
    busy, end = 0.0, 0.0
    for first, last in sorted(spans):
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    whole = end - min(first for first, _ in spans)
    print(f"\nbusy {busy / images:.1f} of {whole / images:.1f} microseconds an image, {images} images")
    for name, spent in sorted(total.items(), key=lambda pair: -pair[1])[:rows]:
        print(f"{spent / images:8.2f} {count[name] / images:7.3f} an image  {name}")


def _engine(
    workload: Workload, host: str, purify: str, classes: int, batch: int | None
) -> SegmentationEngine:
    chosen = replace(workload, config=replace(workload.config, window_batch=batch))
    return trust_kernels(chosen.engine(host, purify, classes))


def _prepared(engine: SegmentationEngine, workload: Workload) -> list[PreparedImage]:
    return [engine.prepare(picture) for picture in workload.pictures]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rates, and with `--profile` the kernels."""
    parser = argparse.ArgumentParser("python -m tests.gpu.engine_times", description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of photographs; drawn scenes without")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--windows", default="256", help="windows of a batch, by commas")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--rows", type=int, default=60)
    given = parser.parse_args(arguments)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    model = ModelConfig("ViT-B-16-quickgelu", "random", "bfloat16")
    workload = load_workload(BenchmarkConfig(images=given.images, image_count=given.count, model=model))
    measure(workload, [int(text) for text in given.windows.split(",")], given.turns)
    if given.profile:
        show_kernels(workload, None, given.rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
