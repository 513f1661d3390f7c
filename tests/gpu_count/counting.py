"""One label call on a pretended GPU, counted."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ovss_core.clip.weights import load_clip
from ovss_core.config import (
    ModelConfig,
    Precision,
    PurificationConfig,
    PurificationMethod,
    PurificationVariant,
    RfClipConfig,
    SegmenterConfig,
)
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.regions import RegionMap
from ovss_core.results import Segmentation
from pipelines.benchmark.options import BenchmarkConfig
from pipelines.benchmark.workload import Workload, load_workload
from tests.gpu_count.pretended import GPU, Counts, pretended_gpu
from tests.tiny import enliven, register_tiny_models

DEEP_TOWER = "tiny-ViT-16-deep"
"""Twelve blocks, as ViT-B-16 has, of width 32."""


@dataclass(frozen=True)
class CountedCall:
    """What one call asked for, and what it gave."""

    counts: Counts
    results: list[Segmentation]

    @property
    def crops(self) -> int:
        """Regions that were shown to the encoder once more."""
        return sum(
            box.winner is not None for image in self.results for group in image.groups for box in group.boxes
        )


def workload_of(images: int, classes: int, precision: Precision = "float32") -> Workload:
    """Draw scenes, and a vocabulary some of whose classes lie near the scenes' own features."""
    register_tiny_models()
    with TemporaryDirectory() as folder:
        model = load_clip(ModelConfig(DEEP_TOWER, "random")).model
        enliven(model.visual, 0)
        weights = Path(folder, "lively.pt")
        torch.save(model.state_dict(), weights)
        return load_workload(
            BenchmarkConfig(
                image_count=images,
                model=ModelConfig(DEEP_TOWER, str(weights), precision),
                device="cpu",
                vocabularies=(classes,),
                threads=1,
            )
        )


def enlarge(picture: np.ndarray, side: int) -> np.ndarray:
    """Make a picture a square one, by repeating its pixels."""
    rows, columns = (np.arange(side) * length // side for length in picture.shape[:2])
    return np.ascontiguousarray(picture[rows][:, columns])


def labelling(
    host: str = "sfp",
    method: PurificationMethod = "freecp",
    variant: PurificationVariant = "image",
    window_batch: int | None = 64,
) -> SegmenterConfig:
    """Return the settings of a call that is counted: more pairs of classes than usual count as ambiguous.

    The softmax is flat, so that random distractors have scores to compare with and random classes pass.
    """
    purification = PurificationConfig(
        method=method, variant=variant, thresholds="distractors", ambiguity_threshold=0.35, score_scale=20.0
    )
    channels = RfClipConfig((3, 17), 1.5)  # nobody has measured those of a random tower
    return SegmenterConfig(host=host, rfclip=channels, purification=purification, window_batch=window_batch)


def count_call(
    workload: Workload, config: SegmenterConfig, classes: int, regions: Sequence[RegionMap] | None = None
) -> CountedCall:
    """Label all pictures in one call: once to fill what is remembered between calls, and once counted."""
    clip, config = workload.clip, replace(config, model=workload.config.model)
    with pretended_gpu() as gpu:
        own = replace(clip, model=deepcopy(clip.model))  # it moves to the device
        engine = SegmentationEngine(config, own, workload.text(classes), GPU)
        engine.segment(workload.pictures, regions)
        gpu.counts = Counts()
        return CountedCall(gpu.counts, engine.segment(workload.pictures, regions))
