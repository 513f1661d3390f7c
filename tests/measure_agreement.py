"""Measure several hosts together: `python -m tests.measure_agreement [--scenes 60] [--photographs VOC2012] [--cost]`.

Hosts alone and together label drawn scenes that the demonstration model never saw, and photographs of VOC, with and
without FreeCP; what they find out about their own certainty is held against their errors by the area under the
risk-coverage curve. `--cost` times whole images by a ViT-B/16 with random weights instead.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ovss_core.api import encode_words
from ovss_core.clip.weights import load_clip
from ovss_core.config import LabelConfig, ModelConfig, PurificationConfig, SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.variants import VariantEngines
from ovss_core.evaluation.confusion import ConfusionCounts, count_confusion
from ovss_core.results import Segmentation
from ovss_core.vocabulary import Vocabulary
from pipelines.demonstration.options import HELD_OUT_SEED
from pipelines.demonstration.scene_store import SCENE_SIZE
from pipelines.demonstration.scenes import render_scene
from pipelines.demonstration.words import CLASS_NAMES
from tests.measure_refiners import find_pairs
from tests.risk_coverage import risk_coverage

ALONE = ("clearclip", "naclip", "sclip", "sfp")
TOGETHER = ("sfp,naclip", "sfp,clearclip", "clearclip,naclip", "clearclip,sclip", "clearclip,naclip,sclip")
METHODS = ("none", "freecp")
LEVELS = 256
BATCH, ROUNDS = 4, 7
IMAGE_SIGNALS = ("score", "margin", "sure", "agreement", "exact")

Picture = tuple[np.ndarray, np.ndarray]
"""An image and its classes, -1 where nothing counts."""


@dataclass
class Cell:
    """What one way to label gave over all images.

    Attributes:
        confusion: Pixels by class.
        losses: Share of wrong pixels of each image.
        signals: What each image says of itself, by `IMAGE_SIGNALS`; larger is surer. "agreement" is the column's, "exact"
            that of the labels of the hosts alone.
        pixels: Counted pixels by whether hosts differ there, whether they are wrong, and margin in 255 steps.
        shares: Each image's disagreement as its column has it, and as the labels of the hosts alone give it.
    """

    confusion: ConfusionCounts | None = None
    losses: list[float] = field(default_factory=list)
    signals: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in IMAGE_SIGNALS})
    pixels: np.ndarray = field(default_factory=lambda: np.zeros((2, 2, LEVELS), np.int64))
    shares: list[tuple[float, float]] = field(default_factory=list)

    def add(self, result: Segmentation, truth: np.ndarray, classes: int, alone: Sequence[np.ndarray]) -> None:
        """Count one image.

        Args:
            alone: Label maps of the hosts alone; none where there is one host.
        """
        confusion = count_confusion(result.label_map, truth, classes)
        self.confusion = confusion if self.confusion is None else self.confusion + confusion
        self.losses.append(1 - confusion.pixel_accuracy)
        sure, share = result.confidence, result.facts["disagreement"]
        assert sure is not None
        assert sure.margins is not None
        differ = np.zeros(truth.shape, bool)
        for other in alone[1:]:
            differ |= other != alone[0]
        agreement = (np.nan, np.nan) if share is None else (1 - share, 1 - float(differ.mean()))
        for name, value in zip(IMAGE_SIGNALS, (sure.score, sure.margin, sure.sure, *agreement), strict=True):
            self.signals[name].append(value)
        counted = truth >= 0
        wrong = result.label_map != truth
        place = (2 * differ.astype(np.int64) + wrong) * LEVELS + sure.margins
        self.pixels += np.bincount(place[counted], minlength=4 * LEVELS).reshape(2, 2, LEVELS)
        if share is not None:
            self.shares.append((share, float(differ.mean())))

    def of_images(self) -> list[float]:
        """Return areas over images in percent: of chance, of the best order, and by each signal (nan without it)."""
        losses = np.array(self.losses)
        found = [risk_coverage(losses, np.nan_to_num(np.array(values))) for values in self.signals.values()]
        known = [not np.isnan(values).any() for values in self.signals.values()]
        areas = [curve.area if there else np.nan for curve, there in zip(found, known, strict=True)]
        return [100 * area for area in (found[0].chance, found[0].best, *areas)]

    def of_pixels(self) -> list[float]:
        """Return the same of pixels: by margin, by whether hosts agree, and by both, margins where they agree first."""
        differ, wrong, level = (axis.ravel() for axis in np.indices(self.pixels.shape))
        signals = (level, 1 - differ, level + LEVELS * (1 - differ))
        found = [
            risk_coverage(wrong.astype(float), values.astype(float), self.pixels.ravel())
            for values in signals
        ]
        return [100 * area for area in (found[0].chance, found[0].best, *(curve.area for curve in found))]

    def error_where(self, differ: int) -> float:
        """Return the share of wrong pixels where hosts agree (0) or differ (1)."""
        right, wrong = self.pixels[differ].sum(1)
        return float(wrong / max(1, right + wrong))


def measure(pictures: Iterator[Picture], words: Vocabulary, count: int) -> dict[tuple[str, str], Cell]:
    """Label pictures in every way; returns a cell for each host or hosts and method."""
    model = ModelConfig("demo")
    clip = load_clip(model)
    base = SegmenterConfig(model, labels=LabelConfig(confidence="pixel"))
    text = encode_words(clip, base, words)
    keys = [(host, method) for method in METHODS for host in (*ALONE, *TOGETHER)]
    engines = [
        SegmentationEngine(
            replace(base, host=host, purification=PurificationConfig(method=method)),  # type: ignore[arg-type]
            clip,
            text,
        )
        for host, method in keys
    ]
    variants, cells, done = VariantEngines(engines), {key: Cell() for key in keys}, 0
    while batch := list(islice(pictures, BATCH)):
        found = dict(zip(keys, variants.segment([image for image, _ in batch]), strict=True))
        for (host, method), results in found.items():
            parts = host.split(",") if "," in host else []
            for place, (_, truth) in enumerate(batch):
                alone = [found[part, method][place].label_map for part in parts]
                cells[host, method].add(results[place], truth, len(words), alone)
        done += len(batch)
        print(f"{done} of {count}", flush=True)
    return cells


def report(cells: dict[tuple[str, str], Cell]) -> list[str]:
    """Draw two tables: areas over images, and over pixels."""
    images = [
        "| hosts | FreeCP | mIoU % | chance | best | score | margin | sure | agreement | exact |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    pixels = [
        "| hosts | FreeCP | chance | best | margin | agreement | both | wrong where hosts agree % | where they differ % "
        "| differ on % | column off by |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (host, method), cell in cells.items():
        assert cell.confusion is not None
        figures = [100 * cell.confusion.mean_iou, *cell.of_images()]
        images.append(f"| {host} | {method} | {' | '.join(map(_shown, figures))} |")
        figures = cell.of_pixels()
        if cell.shares:
            shares = 100 * np.array(cell.shares)
            off = float(np.abs(shares[:, 0] - shares[:, 1]).mean())
            figures += [100 * cell.error_where(0), 100 * cell.error_where(1), shares[:, 1].mean(), off]
        else:
            figures[3:] = [np.nan] * 6
        pixels.append(f"| {host} | {method} | {' | '.join(map(_shown, figures))} |")
    return ["areas under the risk-coverage curve, percent; images:", *images, "pixels:", *pixels]


def _shown(figure: float) -> str:
    return "" if np.isnan(figure) else f"{figure:.1f}"


def scenes(count: int) -> Iterator[Picture]:
    """Draw scenes that the model never saw."""
    for number in range(count):
        scene = render_scene(HELD_OUT_SEED + number, SCENE_SIZE)
        yield scene.image, scene.labels.astype(np.int64)


def photographs(pairs: Sequence[tuple[Path, Path]]) -> Iterator[Picture]:
    """Read photographs and their classes."""
    for photograph, mask in pairs:
        with Image.open(photograph) as opened:
            image = np.asarray(opened.convert("RGB"))
        with Image.open(mask) as opened:
            stored = np.asarray(opened).astype(np.int64)
        yield image, np.where(stored == 255, -1, stored)


def cost(classes: int) -> list[str]:
    """Time whole images by one host and by two, in turns; least of several rounds."""
    clip = load_clip(ModelConfig("ViT-B-16", "random"))
    words = Vocabulary.from_names([f"class {number}" for number in range(classes)])
    pictures = [render_scene(HELD_OUT_SEED, 500).image[:375]]
    lines = ["| hosts | FreeCP | ms an image | beside sfp |", "|---|---|---:|---:|"]
    for method in METHODS:
        base = SegmenterConfig(ModelConfig("ViT-B-16", "random"))
        purification = PurificationConfig(method=method)  # type: ignore[arg-type]
        text = encode_words(clip, replace(base, purification=purification), words)
        engines = {
            host: SegmentationEngine(replace(base, host=host, purification=purification), clip, text)
            for host in ("sfp", "sfp,naclip", "sfp,clearclip")
        }
        seconds = dict.fromkeys(engines, np.inf)
        for _ in range(ROUNDS):
            for host, engine in engines.items():
                start = time.perf_counter()
                engine.segment(pictures)
                seconds[host] = min(seconds[host], time.perf_counter() - start)
        lines += [
            f"| {host} | {method} | {1000 * taken:.0f} | {taken / seconds['sfp']:.3f} |"
            for host, taken in seconds.items()
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--limit", type=int, default=121, help="at most so many photographs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--classes", type=int, default=21)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.cost:
        print("\n".join(cost(given.classes)))
        return
    if given.scenes:
        found = measure(scenes(given.scenes), Vocabulary.from_names(CLASS_NAMES), given.scenes)
        print("\n".join(report(found)))
    if given.photographs:
        pairs = list(find_pairs(given.photographs))[: given.limit]
        words = Vocabulary.load("voc21.sfp")
        print("\n".join(report(measure(photographs(pairs), words, len(pairs)))))


if __name__ == "__main__":
    main()
