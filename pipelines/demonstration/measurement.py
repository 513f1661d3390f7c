"""Measures the demonstration model on held-out scenes: hosts, with and without FreeCP, on three vocabularies.

Each scene is labelled with the words of its own classes ("present"), with all words of the scenes ("full"), and
with as many words again for things that are never drawn ("over").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ovss_core.api import encode_words
from ovss_core.check import validate
from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.variants import EncodedWave, VariantEngines
from ovss_core.evaluation.confusion import ConfusionCounts, count_confusion
from ovss_core.evaluation.oracle import restrict
from ovss_core.evaluation.vocabulary_metrics import PresenceCounts, count_presence, present_classes
from ovss_core.results import Segmentation
from ovss_core.vocabulary import Vocabulary
from pipelines.demonstration.scene_store import HELD_OUT_SEED, SCENE_SIZE
from pipelines.demonstration.scenes import Scene, render_scene
from pipelines.demonstration.words import ABSENT_WORDS, CLASS_NAMES
from pipelines.pages import render

METHODS: tuple[Literal["none", "freecp"], ...] = ("none", "freecp")
VOCABULARIES = ("present", "full", "over")
_BATCH = 4


@dataclass(frozen=True)
class MeasuredCell:
    """Counts of one host, method and vocabulary over all scenes.

    Attributes:
        confusion: Pixels by class of the over-complete vocabulary.
        presence: Classes that purification kept (without it: classes in the label map) against those drawn.
    """

    host: str
    method: str
    vocabulary: str
    confusion: ConfusionCounts
    presence: PresenceCounts

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur in the ground truth; pixels of other words count as missed."""
        return float(self.confusion.iou[self.confusion.actual > 0].mean())


Cells = dict[tuple[str, str, str], MeasuredCell]


def measure_demo(
    hosts: Sequence[str],
    count: int = 300,
    model: ModelConfig | None = None,
    first_seed: int = HELD_OUT_SEED,
    report: Callable[[int], None] | None = None,
) -> list[MeasuredCell]:
    """Label held-out scenes in every way and count.

    Args:
        hosts: Dense heads.
        count: Number of scenes.
        model: Which model; the demonstration model by default.
        first_seed: Seed of the first scene.
        report: Called with the number of scenes done.

    Returns:
        One cell for each host, method and vocabulary, in that order.
    """
    for host in hosts:
        validate(SegmenterConfig(model or ModelConfig(name="demo"), host))
    engines, over = _build_engines(hosts, model or ModelConfig(name="demo"))
    variants, cells = VariantEngines(engines), _empty_cells(hosts)
    for start in range(0, count, _BATCH):
        seeds = range(first_seed + start, first_seed + min(start + _BATCH, count))
        scenes = [render_scene(seed, SCENE_SIZE) for seed in seeds]
        encoded = variants.encode([scene.image for scene in scenes])
        for engine, groups in zip(engines, encoded, strict=True):
            for group in groups:
                for position, place in enumerate(group.wave.places):
                    _count_scene(cells, engine, over, group.single(position, engine), scenes[place])
        if report:
            report(start + len(scenes))
    return list(cells.values())


def as_table(cells: Sequence[MeasuredCell], count: int) -> str:
    """Return the cells as a Markdown table."""
    return render("demonstration.md", cells=cells, count=count).rstrip()


def _build_engines(
    hosts: Sequence[str], model: ModelConfig
) -> tuple[list[SegmentationEngine], EncodedVocabulary]:
    """Return an engine for each host and method on the full vocabulary, and the over-complete one's text."""
    over_names = Vocabulary.from_names((*CLASS_NAMES, *ABSENT_WORDS), "demo and absent words")
    clip = load_clip(model)
    purifying = SegmenterConfig(model, purification=PurificationConfig(method="freecp"))
    over = encode_words(clip, purifying, over_names)
    full = restrict(over, range(len(CLASS_NAMES)))
    configs = [
        replace(purifying, host=host, purification=PurificationConfig(method=method))
        for host in hosts
        for method in METHODS
    ]
    return [SegmentationEngine(config, clip, full) for config in configs], over


def _empty_cells(hosts: Sequence[str]) -> Cells:
    nothing = np.zeros((1, 1), np.uint8), np.full((1, 1), -1, np.int64)
    confusion = count_confusion(*nothing, len(CLASS_NAMES) + len(ABSENT_WORDS))
    keys = [(host, method, words) for host in hosts for method in METHODS for words in VOCABULARIES]
    return {key: MeasuredCell(*key, confusion, PresenceCounts()) for key in keys}


def _count_scene(
    cells: Cells, engine: SegmentationEngine, over: EncodedVocabulary, image: EncodedWave, scene: Scene
) -> None:
    truth = scene.labels.astype(np.int64)
    present = sorted(present_classes(truth, None))
    texts = {"present": restrict(over, present), "full": engine.text, "over": over}
    for words, text in texts.items():
        [result] = image.segment(engine.with_vocabulary(text, engine.config))
        offered = np.asarray(present if words == "present" else range(len(text.vocabulary)))
        kept = offered[_remaining(result, engine.purifier is not None)]
        key = (engine.config.host, engine.config.purification.method, words)
        cell = cells[key]
        cells[key] = replace(
            cell,
            confusion=cell.confusion
            + count_confusion(offered[result.label_map], truth, len(over.vocabulary)),
            presence=cell.presence + count_presence(frozenset(kept.tolist()), frozenset(present)),
        )


def _remaining(result: Segmentation, purified: bool) -> list[int]:
    """Return the classes that purification kept, or those in the label map where there was none."""
    return [entry.index for entry in (result.kept if purified else result.present)]
