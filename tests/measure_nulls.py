"""Compare estimated with counted false words on drawn scenes: `python -m tests.measure_nulls [--scenes 24]`.

A rule that compares classes with words known to be absent promises how many absent classes pass. Here the promise is
one an image, and each rule's kept classes are counted against those drawn. The rules differ in what stands for an absent
class: distractors, as `--purification.thresholds distractors` has them; the middle between two words of the vocabulary;
the vocabulary's own lower scores; or in what is promised: a share of the kept classes.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.api import encode_words
from ovss_core.class_purification import purifier
from ovss_core.class_purification.null import null_threshold
from ovss_core.clip.weights import ClipModel, load_clip
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig, published_thresholds
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.evaluation.vocabulary_metrics import PresenceCounts, count_presence
from pipelines.demonstration.measurement import measured_vocabulary
from pipelines.demonstration.options import HELD_OUT_SEED
from pipelines.demonstration.scene_store import SCENE_SIZE
from pipelines.demonstration.scenes import render_scene
from pipelines.demonstration.words import CLASS_NAMES

PAIRS, LOWER, CEILING, SHOWN = 150, 0.5, 0.5, 0.05
FIRST_SEED = HELD_OUT_SEED + 700_000
COMPARED = PurificationConfig(ambiguity=False, thresholds="distractors")
EVERYTHING = replace(COMPARED, thresholds="fixed", redundancy_threshold=0.0)


@dataclass(frozen=True)
class Scored:
    """One scene: the score of every class, of the distractors and of the middles, and the classes drawn."""

    classes: np.ndarray
    distractors: np.ndarray
    middles: np.ndarray
    drawn: frozenset[int]


def score_scenes(clip: ClipModel, host: str, words: str, seeds: Sequence[int]) -> list[Scored]:
    """Score classes and both families of nulls in each scene."""
    base = SegmenterConfig(ModelConfig("demo"), host, purification=COMPARED)
    text = encode_words(clip, base, measured_vocabulary(words))
    generator = torch.Generator().manual_seed(0)
    pairs = torch.stack([torch.randperm(len(text.vocabulary), generator=generator)[:2] for _ in range(PAIRS)])
    middles = F.normalize(text.phrase_embeddings[pairs].sum(1), dim=1)
    nulls = [SegmentationEngine(base, clip, own) for own in (text, replace(text, null_embeddings=middles))]
    every = SegmentationEngine(replace(base, purification=EVERYTHING), clip, text)
    found = []
    for seed in seeds:
        scene = render_scene(seed, SCENE_SIZE)
        scores = np.zeros(len(text.vocabulary))
        for entry in every.segment([scene.image])[0].kept:
            scores[entry.index] = entry.score
        drawn = frozenset(np.unique(scene.labels).tolist())
        distractors, between = (_null_scores(engine, scene.image) for engine in nulls)
        found.append(Scored(scores, distractors, between, drawn))
    return found


def _null_scores(engine: SegmentationEngine, image: np.ndarray) -> np.ndarray:
    """Return what the nulls scored, which an engine keeps to itself."""
    seen: list[Tensor] = []

    def watch(scores: Tensor, classes: int, ceiling: float, floor: float) -> Tensor:
        seen.append(scores)
        return null_threshold(scores, classes, ceiling, floor)

    with patch.object(purifier, "null_threshold", watch):
        engine.segment([image])
    [scores] = seen
    return scores[0].numpy()


def _by_image(scenes: Sequence[Scored], nulls: Callable[[Scored], np.ndarray]) -> list[np.ndarray]:
    """Keep what exceeds the line through each image's own nulls."""
    kept = []
    for scene in scenes:
        table, classes = torch.from_numpy(nulls(scene))[None], len(scene.classes)
        floor, _ = published_thresholds(classes)
        kept.append(scene.classes > null_threshold(table, classes, CEILING, floor).item())
    return kept


def _pooled(scenes: Sequence[Scored]) -> list[np.ndarray]:
    """Keep what exceeds one quantile of the distractors of all images."""
    share = 1 / len(scenes[0].classes)
    limit = np.quantile(np.concatenate([scene.distractors for scene in scenes]), 1 - share)
    return [scene.classes > limit for scene in scenes]


def _lower(scene: Scored) -> np.ndarray:
    """Take the classes' own lower scores for the nulls, mirrored at their middle in logarithms."""
    logs = np.sort(np.log(np.clip(scene.classes / CEILING, 1e-4, 1 - 1e-4)))
    half = logs[: int(LOWER * len(logs))]
    mirrored = np.concatenate([half, 2 * half[-1] - half])
    return np.asarray(CEILING * np.exp(np.minimum(mirrored, -1e-4)))


def _share(scenes: Sequence[Scored], share: float = 0.1) -> list[np.ndarray]:
    """Keep as many as leave a tenth of them false by the distractors' ranks (Benjamini and Hochberg, 1995)."""
    kept = []
    for scene in scenes:
        above = (scene.distractors[None] >= scene.classes[:, None]).sum(1)
        chance = (1 + above) / (1 + len(scene.distractors))
        order = np.argsort(chance)
        passing = np.flatnonzero(chance[order] <= share * np.arange(1, len(chance) + 1) / len(chance))
        keep = np.zeros(len(chance), bool)
        keep[order[: passing[-1] + 1 if passing.size else 0]] = True
        kept.append(keep)
    return kept


def _published(scenes: Sequence[Scored]) -> list[np.ndarray]:
    limit, _ = published_thresholds(len(scenes[0].classes))
    return [scene.classes > limit for scene in scenes]


RULES: dict[str, Callable[[Sequence[Scored]], list[np.ndarray]]] = {
    "distractors, each image by itself": lambda scenes: _by_image(scenes, lambda scene: scene.distractors),
    "distractors, one quantile over all images": _pooled,
    "the middle between two words": lambda scenes: _by_image(scenes, lambda scene: scene.middles),
    "the lower half of the classes' own scores": lambda scenes: _by_image(scenes, _lower),
    "a tenth of the kept false, by distractors": _share,
    "published thresholds": _published,
}


def shares_above(scenes: Sequence[Scored]) -> str:
    """Return the share above 0.05 of distractors, of absent words beyond the 44, and of absent ones among them."""
    drawn = len(CLASS_NAMES)
    absent = [[k for k in range(drawn) if k not in scene.drawn] for scene in scenes]
    columns = (
        [scene.distractors for scene in scenes],
        [scene.classes[drawn:] for scene in scenes],
        [scene.classes[places] for scene, places in zip(scenes, absent, strict=True)],
    )
    pooled = [np.concatenate(column) for column in columns]
    return " | ".join(f"{100 * (column > SHOWN).mean():.2f} %" if column.size else "" for column in pooled)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--host", default="clearclip")
    parser.add_argument("--vocabularies", default="full,ade144,many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clip, seeds = load_clip(ModelConfig("demo")), range(FIRST_SEED, FIRST_SEED + given.scenes)
    for words in given.vocabularies.split(","):
        scenes = score_scenes(clip, given.host, words, seeds)
        print(f"{words}, share above {SHOWN}: {shares_above(scenes)}")
        for name, rule in RULES.items():
            counts = PresenceCounts()
            for scene, keep in zip(scenes, rule(scenes), strict=True):
                counts += count_presence(frozenset(np.flatnonzero(keep).tolist()), scene.drawn)
            print(
                f"| {name} | {counts.false_alarms / len(scenes):.1f} | {100 * counts.recall:.0f} | "
                f"{100 * counts.f1:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
