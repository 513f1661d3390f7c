"""What CaR's filter of words costs and gives beside FreeCP: `python -m tests.measure_car 20`.

The demo model with `clearclip` labels held-out scenes, whole vocabulary, by each form in turn. Printed are mIoU, words kept an
image, how many of these are in the scene, and seconds of this process beside those without purification.
"""

import argparse
import time
from dataclasses import dataclass, field, replace

import numpy as np

from ovss_core.api import encode_words
from ovss_core.clip.recommended import filled, recommended_settings
from ovss_core.clip.weights import load_clip
from ovss_core.config import CarConfig, ModelConfig, PurificationConfig, SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.evaluation.confusion import ConfusionCounts, count_confusion
from ovss_core.vocabulary import Vocabulary
from pipelines.demonstration.options import HELD_OUT_SEED
from pipelines.demonstration.scenes.scene import render_scene


@dataclass
class _Measured:
    confusion: ConfusionCounts
    seconds: float = 0.0
    kept: list[int] = field(default_factory=list)
    true: list[int] = field(default_factory=list)
    present: list[int] = field(default_factory=list)


def _forms(model: ModelConfig) -> dict[str, SegmenterConfig]:
    freecp = replace(filled(recommended_settings(model)), model=model, host="clearclip")
    forms = {
        "none": replace(freecp, purification=PurificationConfig("none")),
        "freecp, as the card recommends": freecp,
    }
    car = replace(freecp, purification=PurificationConfig("car"))
    forms |= {f"car, {share}": replace(car, car=CarConfig(share)) for share in (0.005, 0.02, 0.1, 0.25)}
    return forms


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=int)
    parser.add_argument("--words", type=int, default=0, help="so many of the demo's words alone")
    values = parser.parse_args()
    model = ModelConfig("demo")
    clip, words = load_clip(model), Vocabulary.load("demo")
    engines = {}
    for name, config in _forms(model).items():
        text = encode_words(clip, config, words)
        engines[name] = SegmentationEngine(
            config, clip, text.select(range(values.words)) if values.words else text
        )
    count = values.words or len(words)
    measured = {name: _Measured(ConfusionCounts.zero(count)) for name in engines}
    for number in range(values.scenes):
        scene = render_scene(HELD_OUT_SEED + number)
        for name, engine in engines.items():
            begun = time.process_time()
            [result] = engine.segment([scene.image])
            found = measured[name]
            found.seconds += time.process_time() - begun
            truth = np.where(scene.labels < count, scene.labels, -1)
            found.confusion += count_confusion(result.label_map, truth, count)
            there = set(np.unique(truth).tolist()) - {-1}
            kept = {entry.index for entry in result.kept} or set(range(count))
            found.kept.append(len(kept))
            found.true.append(len(kept & there))
            found.present.append(len(there))
    print(f"{values.scenes} scenes, {count} words, {np.mean(measured['none'].present):.1f} of them present")
    for name, found in measured.items():
        print(
            f"{name:<32} mIoU {100 * found.confusion.mean_iou:5.1f}  kept {np.mean(found.kept):5.1f}, present "
            f"{np.mean(found.true):5.1f}  cost {found.seconds / measured['none'].seconds:6.2f}"
        )


if __name__ == "__main__":
    main()
