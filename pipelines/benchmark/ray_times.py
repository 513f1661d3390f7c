"""The Ray job beside the bare engine: throughput, actors, corpus size, and the driver's memory."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from ovss_core.api import encode_words
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig, SegmenterConfig, WindowConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.vocabulary import Vocabulary
from pipelines.benchmark.options import BenchmarkConfig
from pipelines.benchmark.workload import decode_pictures, picture_files
from pipelines.label.job import LabelJob, run_label
from pipelines.label.masks import encode_mask
from pipelines.run.compute import pick_device
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from pipelines.run.pools import CPU_BATCH, GPU_BATCH

DISTINCT_PICTURES = 50
SMALL_SIDE = 96
SMALL_COUNTS = (100, 10_000)
MEMORY_COUNTS = (10_000, 1_000_000)
WARM_SHARE = 10  # the shorter run that start-up is taken from has a tenth of the pictures

_MEMORY_PROBE = """
import sys
from pipelines.run.manifest import prepare_manifest
from pipelines.benchmark.timing import resident_megabytes
from pipelines.sources import ParquetSource
from pipelines.storage import Folder
before = resident_megabytes()
prepare_manifest(Folder(sys.argv[2]), ParquetSource(sys.argv[1], "uri", None), 256)
print(before, resident_megabytes("VmHWM"))
"""


def ray_over_engine(
    config: BenchmarkConfig, model: str, pools: PoolOptions | None = None
) -> dict[str, float]:
    """Label the same files by a bare loop over the engine and by the Ray job on the same cores.

    Start-up is taken out by labelling a tenth of the files first: a rate is the difference in files over the
    difference in seconds. The bare loop, which knows no start-up once it has run, takes that tenth once
    before and once after the job, so that a machine whose speed drifts does not favor either.

    Args:
        config: How many files, and the number format.
        model: The architecture.
        pools: The job's workers; None takes the job's own choice.
    """
    settings, vocabulary = _settings(config, model)
    files = picture_files(config.images, min(DISTINCT_PICTURES, config.ray_images))
    few, many = max(1, config.ray_images // WARM_SHARE), config.ray_images
    with tempfile.TemporaryDirectory() as root:
        folders = {count: _corpus(Path(root) / f"images-{count}", files, count) for count in (few, many)}
        engine = _engine(settings, vocabulary, config)
        _bare_loop(engine, _corpus(Path(root) / "warm-up", files, min(few, CPU_BATCH)))
        before = _bare_loop(engine, folders[few])
        job = _job_rate(settings, vocabulary, folders, Path(root), pools or PoolOptions())
        loop = 2 * few / (before + _bare_loop(engine, folders[few]))
    return {"ray_over_engine": job / loop, "engine_images_a_second": loop, "ray_images_a_second": job}


def scaling(config: BenchmarkConfig) -> dict[str, object]:
    """Measure 1 and 2 actors, 100 and 10,000 small images, and the driver's memory by number of images."""
    settings, vocabulary = _settings(config, config.ray_models[-1])
    small = replace(settings, windows=WindowConfig(size=224, stride=224, short_side=224))
    share = min(1.0, torch.cuda.device_count() / 2)
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as root:
        few, many = max(1, config.ray_images // WARM_SHARE), config.ray_images
        files = picture_files(config.images, min(DISTINCT_PICTURES, config.ray_images))
        folders = {count: _corpus(Path(root) / f"images-{count}", files, count) for count in (few, many)}
        result["images_a_second_by_actors"] = {
            actors: _job_rate(
                settings,
                vocabulary,
                folders,
                Path(root) / f"actors-{actors}",
                PoolOptions(actors=actors, finish_actors=0, torch_threads=1, num_gpus=share),
            )
            for actors in (1, 2)
        }
        tiny = [_small_picture(seed) for seed in range(DISTINCT_PICTURES)]
        result["small_images_a_second_by_count"] = {
            count: count
            / _job_seconds(
                small,
                vocabulary,
                _corpus(Path(root) / f"small-{count}", tiny, count),
                Path(root) / f"labels-{count}",
                PoolOptions(),
            )
            for count in SMALL_COUNTS
        }
    result["driver_megabytes_by_images"] = {count: _driver_memory(count) for count in MEMORY_COUNTS}
    return result


def _settings(config: BenchmarkConfig, model: str) -> tuple[SegmenterConfig, Vocabulary]:
    pretrained = "openai" if model == "demo" else "random"
    settings = SegmenterConfig(model=ModelConfig(model, pretrained, config.model.precision))
    return settings, Vocabulary.load("demo")


def _engine(settings: SegmenterConfig, vocabulary: Vocabulary, config: BenchmarkConfig) -> SegmentationEngine:
    clip = load_clip(settings.model)
    device = pick_device(config.device or "auto")
    text = encode_words(clip, settings, vocabulary, device=device)
    return SegmentationEngine(settings, clip, text, device)


def _corpus(folder: Path, files: Sequence[bytes], count: int) -> Path:
    """Write `count` files, repeating the given ones by hard links."""
    folder.mkdir(parents=True)
    for index, data in enumerate(files[:count]):
        (folder / f"{index:06d}.jpg").write_bytes(data)
    for index in range(len(files), count):
        os.link(folder / f"{index % len(files):06d}.jpg", folder / f"{index:06d}.jpg")
    return folder


def _bare_loop(engine: SegmentationEngine, folder: Path) -> float:
    """Decode, label and encode the masks of all files in batches; returns the seconds."""
    paths = sorted(folder.iterdir())
    size = CPU_BATCH if engine.device.type == "cpu" else GPU_BATCH
    start = time.perf_counter()
    for first in range(0, len(paths), size):
        pictures = decode_pictures([path.read_bytes() for path in paths[first : first + size]])
        for segmentation in engine.segment(pictures):
            encode_mask(segmentation.label_map)
    return time.perf_counter() - start


def _job_rate(
    settings: SegmenterConfig,
    vocabulary: Vocabulary,
    folders: dict[int, Path],
    root: Path,
    pools: PoolOptions,
) -> float:
    few, many = sorted(folders)
    seconds = {
        count: _job_seconds(settings, vocabulary, folder, root / f"labels-{count}", pools)
        for count, folder in folders.items()
    }
    return (many - few) / (seconds[many] - seconds[few])


def _job_seconds(
    settings: SegmenterConfig, vocabulary: Vocabulary, folder: Path, output: Path, pools: PoolOptions
) -> float:
    """Run the labelling job and return the seconds of its pipeline, start-up of Ray itself apart."""
    source = SourceOptions(images=str(folder))
    job = LabelJob(source, RunOptions(str(output), progress_s=60), vocabulary, settings, pools=pools)
    seconds: float = run_label(job)["this_start"]["seconds"]
    return seconds


def _small_picture(seed: int) -> bytes:
    """Return a small JPEG of colored noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with tempfile.SpooledTemporaryFile() as file:
        Image.fromarray(pixels).resize((SMALL_SIDE, SMALL_SIDE)).save(file, "JPEG")
        file.seek(0)
        return file.read()


def _driver_memory(count: int) -> float:
    """Return by how many megabytes a process grows that lists `count` images into a manifest."""
    with tempfile.TemporaryDirectory() as root:
        uris = pa.array([f"s3://bucket/folder/{index:09d}.jpg" for index in range(count)])
        pq.write_table(pa.table({"uri": uris}), Path(root) / "images.parquet")
        probe = [sys.executable, "-c", _MEMORY_PROBE, f"{root}/images.parquet", f"{root}/output"]
        before, peak = map(
            float, subprocess.run(probe, check=True, capture_output=True, text=True).stdout.split()
        )
    return peak - before
