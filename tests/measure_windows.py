"""Count what each rule for FreeCP's threshold keeps in windows that the authors' program was run on.

`python -m tests.measure_windows` draws the scenes of `end_to_end/` and cuts them as that program did; `end_to_end/kept.json` has
the words that it kept, at 0.10, and the drawings say which are there. Then it counts what the rules keep of the authors' scores
in `golden/freecp_stages.npz`, random weights and made-up words, where nothing is known to be there.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ovss_core.api import encode_words
from ovss_core.clip.weights import load_clip
from ovss_core.config import (
    ModelConfig,
    PurificationConfig,
    SegmenterConfig,
    WindowConfig,
    published_thresholds,
)
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.evaluation.vocabulary_metrics import PresenceCounts, count_presence
from ovss_core.images.resize import resize_image
from ovss_core.images.windows import axis_windows
from ovss_core.vocabulary import Vocabulary
from pipelines.demonstration.options import SEED_SPACING
from pipelines.demonstration.scene_store import SCENE_SIZE
from pipelines.demonstration.scenes import render_scene

FOLDER = Path(__file__).parent
SCENES, SEED, SHORT, SIDE, STRIDE, THEIRS = 3, 99, 448, 384, 112, 0.10
AUTHORS = PurificationConfig(
    ambiguity=False, thresholds="fixed", redundancy_threshold=THEIRS, score_scale=100.0
)
RULES = {
    "0.10 at scale 100, as they ran": AUTHORS,
    "`published`": PurificationConfig(ambiguity=False),
    "`fixed`, 0.15": replace(AUTHORS, redundancy_threshold=0.15, score_scale=None),
    "`distractors`": PurificationConfig(ambiguity=False, thresholds="distractors"),
}


def cut_windows(picture: np.ndarray) -> list[np.ndarray]:
    """Cut [height, width, channels] into windows, rows first."""
    starts = axis_windows(SHORT, SIDE, STRIDE).starts
    return [picture[top : top + SIDE, left : left + SIDE] for top in starts for left in starts]


def draw_windows() -> tuple[list[np.ndarray], list[frozenset[int]]]:
    """Return the windows of all scenes, and the classes drawn in each."""
    pictures: list[np.ndarray] = []
    drawn: list[frozenset[int]] = []
    places = (np.arange(SHORT) + 0.5) * SCENE_SIZE // SHORT
    nearest = places.astype(np.int64)
    for number in range(SCENES):
        scene = render_scene(SEED * SEED_SPACING + number, SCENE_SIZE)
        pictures += cut_windows(resize_image(scene.image, SHORT, 2048))
        labels = scene.labels[nearest[:, None], nearest]
        drawn += [frozenset(np.unique(window).tolist()) for window in cut_windows(labels[..., None])]
    return pictures, drawn


def count(kept: list[frozenset[int]], drawn: list[frozenset[int]]) -> str:
    """Return words kept and false words a window, recall and precision in percent, as cells of a table."""
    counts = PresenceCounts()
    for words, there in zip(kept, drawn, strict=True):
        counts += count_presence(words, there)
    kept_words = sum(map(len, kept)) / len(kept)
    false = counts.false_alarms / len(kept)
    return f"{kept_words:.1f} | {false:.1f} | {100 * counts.recall:.0f} | {100 * counts.precision:.0f}"


def count_scores() -> None:
    """Print how many of the authors' scores pass on the windows of the small random tower."""
    print("\n| words | windows | kept as tuned | `published` | `fixed`, 0.15 |\n|---|---|---|---|---|")
    with np.load(FOLDER / "golden/freecp_stages.npz") as arrays:
        for case, tuned in (("k20", 0.15), ("k60", 0.10), ("k150", 0.05)):
            scores = np.stack([arrays[f"{case}/{window}/rp_score"] for window in ("w0", "w3", "w4")])
            limits = (tuned, published_thresholds(scores.shape[1])[0], 0.15)
            cells = " | ".join(f"{(scores > limit).sum(1).mean():.1f}" for limit in limits)
            print(f"| {scores.shape[1]} | {len(scores)} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", default="clearclip,sclip,maskclip")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clip, (pictures, drawn) = load_clip(ModelConfig("demo")), draw_windows()
    theirs = json.loads((FOLDER / "end_to_end/kept.json").read_text())
    print("| host | rule | words kept a window | false | recall % | precision % |\n|---|---|---|---|---|---|")
    for host in given.hosts.split(","):
        known = [frozenset(words) for words in theirs.get(host, ())]
        if known:
            print(f"| {host} | the authors' program, 0.10 | {count(known, drawn)} |")
        windows = WindowConfig(size=SIDE, stride=STRIDE, short_side=SIDE)
        for name, rule in RULES.items():
            config = SegmenterConfig(ModelConfig("demo"), host, windows=windows, purification=rule)
            engine = SegmentationEngine(config, clip, encode_words(clip, config, Vocabulary.load("demo")))
            kept = [
                frozenset(entry.index for entry in engine.segment([picture])[0].kept) for picture in pictures
            ]
            print(f"| {host} | {name} | {count(kept, drawn)} |", flush=True)
    count_scores()


if __name__ == "__main__":
    main()
