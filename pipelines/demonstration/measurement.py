"""Measures the demonstration model on held-out scenes: hosts, with and without FreeCP in its forms, on vocabularies.

Each scene is labelled with the words of its own classes ("present"), with all 44 words of the scenes ("full"), with as
many words again for things that are never drawn ("over"), with the first 100 other words of ade20k beside the 44, some
of which name what is drawn in other words ("ade144"), or with 1,000 words of CLIP's tokenizer beside them ("many").
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from ovss_core.api import encode_words
from ovss_core.check import validate
from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.weights import ClipModel, load_clip
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.variants import EncodedWave, VariantEngines
from ovss_core.evaluation.confusion import ConfusionCounts, count_confusion
from ovss_core.evaluation.oracle import restrict
from ovss_core.evaluation.vocabulary_metrics import PresenceCounts, count_presence, present_classes
from ovss_core.results import Segmentation
from ovss_core.vocabulary import Vocabulary
from pipelines.demonstration.options import HELD_OUT_SEED, MeasureOptions
from pipelines.demonstration.scene_store import SCENE_SIZE
from pipelines.demonstration.scenes import Scene, render_scene
from pipelines.demonstration.words import ABSENT_WORDS, ADE_WORDS, CLASS_NAMES, DISTRACTORS, phrases_of
from pipelines.pages import render

_BATCH = 4
_MANY = 1_000
_PRESENT, _FULL = "present", "full"


@dataclass(frozen=True)
class MeasuredCell:
    """Counts of one host, method and vocabulary over all scenes.

    Attributes:
        method: "none", or the form of FreeCP.
        confusion: Pixels by class; those of all words beyond the 44 stand together in one class more.
        presence: Classes that purification kept (without it: classes in the label map) against those drawn.
        scenes: Number of scenes.
    """

    host: str
    method: str
    vocabulary: str
    confusion: ConfusionCounts
    presence: PresenceCounts
    scenes: int = 0

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur in the ground truth; pixels of other words count as missed."""
        return float(self.confusion.iou[self.confusion.actual > 0].mean())

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that have their class."""
        return float(self.confusion.intersection.sum() / self.confusion.actual.sum())

    @property
    def false_words(self) -> float:
        """Words an image that were kept and are not drawn."""
        return self.presence.false_alarms / self.scenes


class _Key(NamedTuple):
    host: str
    method: str
    vocabulary: str


Cells = dict[_Key, MeasuredCell]


def measure_demo(
    hosts: Sequence[str],
    count: int = 300,
    model: ModelConfig | None = None,
    first_seed: int = HELD_OUT_SEED,
    report: Callable[[int], None] | None = None,
    options: MeasureOptions | None = None,
) -> list[MeasuredCell]:
    """Label held-out scenes in every way and count.

    Args:
        hosts: Dense heads.
        count: Number of scenes.
        model: Which model; the demonstration model by default.
        first_seed: Seed of the first scene.
        report: Called with the number of scenes done.
        options: Which methods and vocabularies, and by which windows and thresholds.

    Returns:
        One cell for each host, method and vocabulary, in that order.
    """
    chosen, options = model or ModelConfig(name="demo"), options or MeasureOptions()
    for host in hosts:
        validate(SegmenterConfig(chosen, host))
    clip = load_clip(chosen)
    engines, texts = _build_engines(hosts, clip, chosen, options)
    variants = VariantEngines(engines)
    offering = [_offer(engine, texts) for engine in engines]
    cells = dict(_empty_cells(hosts, options))
    for start in range(0, count, _BATCH):
        seeds = range(first_seed + start, first_seed + min(start + _BATCH, count))
        scenes = [render_scene(seed, SCENE_SIZE) for seed in seeds]
        encoded = variants.encode([scene.image for scene in scenes])
        for engine, offered, groups in zip(engines, offering, encoded, strict=True):
            for group in groups:
                for position, place in enumerate(group.wave.places):
                    image = group.single(position, engine)
                    _count_scene(cells, engine, offered, image, scenes[place], options)
        if report:
            report(start + len(scenes))
    return list(cells.values())


def as_table(cells: Sequence[MeasuredCell], count: int) -> str:
    """Return the cells as a Markdown table."""
    return render("demonstration.md", cells=cells, count=count).rstrip()


def measured_vocabulary(name: str) -> Vocabulary:
    """Return the words that a scene is offered, the 44 that are drawn first.

    Args:
        name: Of `MEASURED_VOCABULARIES`, but "present", which every scene has its own of.
    """
    if name == "over":
        return Vocabulary.from_names((*CLASS_NAMES, *ABSENT_WORDS), "demo and absent words")
    if name == "ade144":
        return Vocabulary.from_names((*CLASS_NAMES, *ADE_WORDS), "demo and words of ade20k")
    if name == "many":
        return Vocabulary.from_names((*CLASS_NAMES, *_unread_words()), "demo and words of the tokenizer")
    return Vocabulary.load("demo")


def _unread_words() -> list[str]:
    """Take 1,000 words, evenly over the alphabet, from those of the tokenizer's that training did not read."""
    read = {word for name in CLASS_NAMES for phrase in phrases_of(name) for word in phrase.split()}
    read |= {word for phrase in DISTRACTORS for word in phrase.split()}
    every = (re.fullmatch(r"([a-z]{4,10})</w>", token) for token in SimpleTokenizer().encoder)
    words = sorted({match[1] for match in every if match} - read)
    return [words[place * len(words) // _MANY] for place in range(_MANY)]


def _build_engines(
    hosts: Sequence[str], clip: ClipModel, model: ModelConfig, options: MeasureOptions
) -> tuple[list[SegmentationEngine], dict[str, EncodedVocabulary]]:
    """Return an engine for each host and method on the full vocabulary, and the text of every vocabulary."""
    base = SegmenterConfig(model, windows=options.windows, purification=options.purification)
    names = dict.fromkeys((_FULL, *(name for name in options.vocabularies if name != _PRESENT)))
    texts = {name: encode_words(clip, base, measured_vocabulary(name)) for name in names}
    configs = [
        replace(base, host=host, purification=_purification(options, method))
        for host in hosts
        for method in options.methods
    ]
    return [SegmentationEngine(config, clip, texts[_FULL]) for config in configs], texts


def _purification(options: MeasureOptions, method: str) -> PurificationConfig:
    if method == "none":
        return PurificationConfig(method="none")
    return replace(options.purification, variant=method)  # type: ignore[arg-type]


def _offer(engine: SegmentationEngine, texts: dict[str, EncodedVocabulary]) -> dict[str, SegmentationEngine]:
    return {name: engine.with_vocabulary(text, engine.config) for name, text in texts.items()}


def _empty_cells(hosts: Sequence[str], options: MeasureOptions) -> Iterator[tuple[_Key, MeasuredCell]]:
    nothing = ConfusionCounts.zero(len(CLASS_NAMES) + 1)
    for host in hosts:
        for method in options.methods:
            for words in options.vocabularies:
                key = _Key(host, method, words)
                yield key, MeasuredCell(*key, nothing, PresenceCounts())


def _count_scene(
    cells: Cells,
    engine: SegmentationEngine,
    offering: dict[str, SegmentationEngine],
    image: EncodedWave,
    scene: Scene,
    options: MeasureOptions,
) -> None:
    truth = scene.labels.astype(np.int64)
    present = sorted(present_classes(truth, None))
    for words in options.vocabularies:
        if words == _PRESENT:
            offered = np.asarray(present)
            one = engine.with_vocabulary(restrict(offering[_FULL].text, present), engine.config)
        else:
            one = offering[words]
            offered = np.arange(len(one.text.vocabulary))
        [result] = image.segment(one)
        kept = offered[_remaining(result, engine.purifier is not None)]
        key = _Key(engine.config.host, _method(engine), words)
        cell = cells[key]
        labels = np.minimum(offered[result.label_map], len(CLASS_NAMES))
        cells[key] = replace(
            cell,
            confusion=cell.confusion + count_confusion(labels, truth, len(CLASS_NAMES) + 1),
            presence=cell.presence + count_presence(frozenset(kept.tolist()), frozenset(present)),
            scenes=cell.scenes + 1,
        )


def _method(engine: SegmentationEngine) -> str:
    purification = engine.config.purification
    return purification.variant if purification.active else "none"


def _remaining(result: Segmentation, purified: bool) -> list[int]:
    """Return the classes that purification kept, or those in the label map where there was none."""
    return [entry.index for entry in (result.kept if purified else result.present)]
