"""Measure the refiners: `python -m tests.measure_refiners [--scenes 40] [--photographs FOLDER] [--threads 1]`.

On drawn scenes the demonstration model labels, with and without FreeCP. On photographs with labels (FOLDER holds
JPEGImages and SegmentationClass as VOC does, or images and masks of the same names) there is no model that knows
them, so perfect scores are refined instead: each patch's share of every class, as a head without errors would give,
and the same with noise; that shows what refining does to masks, not to a model's mistakes.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ovss_core.api import encode_words
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig, WindowConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.refined import RefinedScores
from ovss_core.evaluation.boundary import count_boundary
from ovss_core.evaluation.confusion import ConfusionCounts, count_confusion
from ovss_core.head_names import refiner_names
from ovss_core.images.resize import normalize, resize_image
from ovss_core.images.stitch import Stitcher
from ovss_core.images.windows import WindowLayout
from ovss_core.refiners import Guide, ScoreMaps, build_refiner
from ovss_core.vocabulary import Vocabulary
from pipelines.demonstration.options import HELD_OUT_SEED
from pipelines.demonstration.scene_store import SCENE_SIZE
from pipelines.demonstration.scenes import render_scene
from pipelines.demonstration.words import CLASS_NAMES

PATCH, SHORT_SIDE, VOC_CLASSES, IGNORED = 16, 336, 21, 255
NOISE = (0.0, 0.7)
"""Standard deviation that is added to the shares of patches, half of it smooth over four patches."""


@dataclass
class Cell:
    """Counts and seconds of one way to label."""

    confusion: ConfusionCounts | None = None
    boundary: ConfusionCounts | None = None
    seconds: float = 0.0
    encoder: float = 0.0

    def add(self, label_map: np.ndarray, truth: np.ndarray, classes: int) -> None:
        """Count one image."""
        confusion = count_confusion(label_map, truth, classes)
        boundary = count_boundary(label_map, truth, classes)
        self.confusion = confusion if self.confusion is None else self.confusion + confusion
        self.boundary = boundary if self.boundary is None else self.boundary + boundary

    def figures(self) -> tuple[float, float]:
        """Return mIoU and boundary IoU in percent."""
        assert self.confusion is not None
        assert self.boundary is not None
        return 100 * self.confusion.mean_iou, 100 * self.boundary.mean_iou


@dataclass
class Table:
    """Cells by what is refined and by what."""

    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)

    def cell(self, what: str, refiner: str) -> Cell:
        """Return a cell, made when it is first asked for."""
        return self.cells.setdefault((what, refiner), Cell())

    def lines(self, images: int) -> list[str]:
        """Draw the table; cost is what labelling an image takes longer than without a refiner."""
        found = [
            "| scores | refiner | mIoU % | boundary IoU % | ms an image | of the encoder's time |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for (what, refiner), cell in self.cells.items():
            more = cell.seconds - self.cells[what, "none"].seconds
            share = f"{100 * more / cell.encoder:.0f} %" if cell.encoder else "-"
            miou, boundary = cell.figures()
            found.append(
                f"| {what} | {refiner} | {miou:.1f} | {boundary:.1f} | {1000 * more / images:.0f} | {share} |"
            )
        return found


def measure_scenes(count: int) -> Table:
    """Label scenes that the demonstration model never saw."""
    model = ModelConfig("demo")
    clip, words = load_clip(model), Vocabulary.from_names(CLASS_NAMES)
    table = Table()
    scenes = [render_scene(HELD_OUT_SEED + number, SCENE_SIZE) for number in range(count)]
    for host in ("clearclip", "sfp"):
        for method in ("none", "freecp"):
            base = SegmenterConfig(model, host, purification=PurificationConfig(method=method))
            text = encode_words(clip, base, words)
            for refiner in refiner_names():
                engine = SegmentationEngine(replace(base, refine=refiner), clip, text)
                cell = table.cell(f"{host}, {'FreeCP' if method == 'freecp' else 'no FreeCP'}", refiner)
                for scene in scenes:
                    [result] = engine.segment([scene.image])
                    cell.add(result.label_map, scene.labels.astype(np.int64), len(words))
                spent = engine.take_timings()
                cell.seconds, cell.encoder = spent["finish"], spent["encoder"]
    return table


def measure_photographs(pairs: list[tuple[Path, Path]]) -> Table:
    """Refine perfect and noisy shares of the classes on the patch grid."""
    table = Table()
    for number, (photograph, mask) in enumerate(pairs):
        with Image.open(photograph) as opened:
            image = np.asarray(opened.convert("RGB"))
        with Image.open(mask) as opened:
            stored = np.asarray(opened).astype(np.int64)
        truth = np.where(stored == IGNORED, -1, stored)
        resized = resize_image(image, SHORT_SIDE, 2048)
        rows, columns = (side // PATCH for side in resized.shape[:2])
        resized = resized[: rows * PATCH, : columns * PATCH]
        shares = _shares(truth, rows, columns)
        for sigma in NOISE:
            scores = shares + sigma * _noise(number, shares.shape)
            layout = WindowLayout.of_image(resized, WindowConfig(size=max(resized.shape), stride=1))
            stitcher = Stitcher((layout,), (rows, columns), (truth.shape,))
            maps = ScoreMaps(stitcher.tile(scores.flatten(1)[None])[0], stitcher, torch.eye(len(scores)))
            guide = Guide(normalize(resized), stitcher.size)
            for name in refiner_names():
                cell = table.cell(f"shares of patches, noise {sigma}", name)
                refiner = build_refiner(name)
                start = time.perf_counter()
                if refiner is None:
                    labels = stitcher.stitch(maps.tiled[None])[0].argmax(0)
                else:
                    labels = RefinedScores(refiner, maps, guide).largest()[1][0]
                cell.seconds += time.perf_counter() - start
                cell.add(labels.numpy().astype(np.int64), truth, VOC_CLASSES)
    return table


def _shares(truth: np.ndarray, rows: int, columns: int) -> torch.Tensor:
    """Return the share of every class in each patch, [classes, rows, columns]."""
    hot = F.one_hot(torch.from_numpy(truth).clamp_min(0), VOC_CLASSES).movedim(2, 0).float()
    return F.interpolate(hot[None], (rows, columns), mode="area")[0]


def _noise(seed: int, shape: torch.Size) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(shape, generator=generator)
    coarse = torch.randn(shape[0], -(-shape[1] // 4), -(-shape[2] // 4), generator=generator)
    smooth = F.interpolate(coarse[None], shape[1:], mode="bilinear")[0]
    return (white + smooth) / 2**0.5


def find_pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield photographs and their masks."""
    for images, masks in (("JPEGImages", "SegmentationClass"), ("images", "masks")):
        for mask in sorted((folder / masks).glob("*.png")):
            found = list((folder / images).glob(f"{mask.stem}.*"))
            if found:
                yield found[0], mask


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--limit", type=int, default=40, help="at most so many photographs")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with torch.inference_mode():
        if given.scenes:
            print(f"{given.scenes} drawn scenes, demonstration model")
            print("\n".join(measure_scenes(given.scenes).lines(given.scenes)))
        pairs = list(find_pairs(given.photographs)) if given.photographs else []
        if not pairs:
            where = (
                f"{given.photographs} holds none"
                if given.photographs
                else "no --photographs FOLDER was given"
            )
            print(f"photographs with labels: skipped, {where}")
            return
        pairs = pairs[: given.limit]
        print(f"{len(pairs)} photographs with labels, patches of {PATCH} pixels, short side {SHORT_SIDE}")
        print("\n".join(measure_photographs(pairs).lines(len(pairs))))


if __name__ == "__main__":
    main()
