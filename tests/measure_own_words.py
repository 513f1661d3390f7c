"""What it costs that each image brings its own words, and what it gives: `python -m tests.measure_own_words --images 100`.

One worker labels drawn scenes in turns of a batch: by one vocabulary for all, and by as many words of each image's own, of
which no two images share one. Printed are seconds of this process (on a GPU of the clock) and their ratio to the first form.
With `--scenes 32` it measures masks instead: each scene is offered the words of what is drawn in it.
With `--corpus 2000` it counts instead what several workers encode of a corpus whose images share so many phrases.
"""

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from ovss_core.api import encode_words
from ovss_core.clip.phrases import PhraseMemory
from ovss_core.clip.recommended import filled, recommended_settings
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig, SegmenterConfig
from ovss_core.vocabulary import Vocabulary
from pipelines.demonstration.options import HELD_OUT_SEED
from pipelines.demonstration.scenes.scene import render_scene
from pipelines.label.masks import decode_mask
from pipelines.label.options import NO_VOCABULARY
from pipelines.label.stages import SegmentStage
from pipelines.label.word_use import OwnWords

_KINDS = (
    *("red", "blue", "green", "old", "new", "small", "large", "wooden"),
    *("metal", "plastic", "broken", "clean", "dark", "bright", "round", "square"),
)


def distinct_phrases(count: int) -> list[str]:
    """Return phrases of two words or more, all different."""
    nouns = [
        entry.phrases[0]
        for name in ("ade20k", "coco_stuff164k", "demo")
        for entry in Vocabulary.load(name).classes
        if entry.phrases
    ]
    kinds = [f"{degree}{kind}" for degree in ("", "very ", "rather ") for kind in _KINDS]
    every = [f"{kind} {noun}" for kind, noun in product(kinds, nouns)]
    phrases = list(dict.fromkeys(every))
    np.random.default_rng(0).shuffle(phrases)
    if count > len(phrases):
        raise SystemExit(f"there are {len(phrases)} phrases; ask for fewer images or words")
    return phrases[:count]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pretrained", default="openai")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--words", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--distinct", type=int, default=64, help="scenes that are drawn; they come again")
    parser.add_argument("--templates", default="one", choices=["one", "all"])
    parser.add_argument("--scenes", type=int, default=0, help="measure the masks of so many scenes")
    parser.add_argument("--corpus", type=int, default=0, help="count what workers encode of so many phrases")
    parser.add_argument("--pairs", type=int, default=2, help="1 leaves out the larger vocabulary")
    values = parser.parse_args()
    if values.scenes:
        measure_masks(values.scenes)
        return
    config = SegmenterConfig(model=ModelConfig(values.model, values.pretrained, values.precision))
    if values.corpus:
        measure_workers(config.model, values.corpus, values.images, values.words, values.batch)
        return
    gpu = torch.cuda.is_available()
    clock = time.perf_counter if gpu else time.process_time
    phrases = distinct_phrases(values.images * values.words)
    own = [phrases[place : place + values.words] for place in range(0, len(phrases), values.words)]
    drawn = [_file(number) for number in range(min(values.distinct, values.images))]
    files = [drawn[number % len(drawn)] for number in range(values.images)]
    clip = load_clip(config.model)
    common = Vocabulary.load("demo")
    device = "cuda" if gpu else "cpu"

    def stage(names: list[str], words: OwnWords | None) -> SegmentStage:
        text = encode_words(clip, config, Vocabulary.from_names(names), None, device)
        threads = None if gpu else 1
        return SegmentStage(config, text, torch_threads=threads, own_words=words)

    plain = [name for name in common.names if name != "background"]
    forms: dict[str, tuple[SegmentStage, bool]] = {
        f"fixed: background and {values.words} words": (stage(["background", *own[0]], None), False),
        f"own: background and {values.words} words": (
            stage(["background"], OwnWords("instead", 1, templates=values.templates)),
            True,
        ),
    }
    if values.pairs > 1:
        forms |= {
            f"fixed: background and {len(plain)} words": (stage(["background", *plain], None), False),
            f"own: the same and {values.words} words": (
                stage(
                    ["background", *plain],
                    OwnWords("besides", 1 + len(plain), templates=values.templates),
                ),
                True,
            ),
        }
    seconds = dict.fromkeys(forms, 0.0)
    parts: dict[str, dict[str, float]] = {name: {} for name in forms}
    for start in range(-2 * values.batch, values.images, values.batch):  # two batches to warm up
        chosen = slice(max(start, 0), max(start, 0) + values.batch)
        for name, (worker, with_words) in forms.items():
            words = (
                own[chosen] if start >= 0 else [[f"{word} again" for word in entry] for entry in own[chosen]]
            )
            rows = pa.table({"image": files[chosen], **({"own_words": words} if with_words else {})})
            spent, found = _timed(worker, rows, clock)
            assert found["failure"].null_count == len(rows), found["failure"].drop_null()[:1]
            if start >= 0:
                seconds[name] += spent
                for step, took in found["seconds"].to_pylist()[0]:
                    parts[name][step] = parts[name].get(step, 0.0) + took
    print(f"{values.model}, {values.images} images in batches of {values.batch}, {len(phrases):,} phrases")
    base = ""
    for name, spent in seconds.items():
        base = name if name.startswith("fixed") else base
        each = ", ".join(f"{step} {1000 * took / values.images:.1f}" for step, took in parts[name].items())
        print(
            f"{name:<36}{1000 * spent / values.images:8.2f} ms an image{spent / seconds[base]:7.2f}   ({each})"
        )


def measure_masks(count: int) -> None:
    """Print mIoU of scenes by what they are offered; the demo model with `clearclip`."""
    model = ModelConfig("demo")
    config = replace(filled(recommended_settings(model)), model=model, host="clearclip")
    words = Vocabulary.load("demo")
    names, known = words.names, encode_words(load_clip(model), config, words)
    half = known.select(range(0, len(names), 2))
    nothing = encode_words(load_clip(model), config, NO_VOCABULARY)
    forms = {
        "all words": SegmentStage(config, known, torch_threads=1),
        "its own words": SegmentStage(config, nothing, torch_threads=1, own_words=OwnWords("instead", 0)),
        "every second word": SegmentStage(config, half, torch_threads=1),
        "every second word, and its own besides": SegmentStage(
            config, half, torch_threads=1, own_words=OwnWords("besides", len(half.vocabulary))
        ),
    }
    tables = {name: np.zeros((len(names), len(names) + 1), np.int64) for name in forms}
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + count):
        scene = render_scene(seed)
        rows = pa.table({"image": [_file(seed)], "own_words": [list(scene.classes)]})
        for name, worker in forms.items():
            row = worker(rows)["result"][0].as_py()
            offered = row["vocabulary"] or worker.engine.text.vocabulary.names
            places = np.full(256, len(names))
            places[: len(offered)] = [names.index(word) for word in offered]
            np.add.at(tables[name], (scene.labels, places[decode_mask(row["mask"])]), 1)
    for name, table in tables.items():
        hit = table.diagonal()
        union = table.sum(1) + table[:, :-1].sum(0) - hit
        print(f"{name:<40} mIoU {100 * (hit / union)[table.sum(1) > 0].mean():.1f}")


def measure_workers(model: ModelConfig, corpus: int, images: int, words: int, batch: int) -> None:
    """Print what workers encode that each remember what they encoded; batches go to whoever is next.

    Args:
        model: Its text tower encodes.
        corpus: Phrases that there are; images draw theirs by Zipf's law, as tags are used: the k-th as often as 1 / k.
        images: Images of the corpus.
        words: Phrases of each.
        batch: Images of a batch, whose new phrases are encoded in one go.
    """
    torch.set_num_threads(1)
    phrases = np.array(distinct_phrases(corpus))
    weights = 1 / np.arange(1, corpus + 1)
    dice = np.random.default_rng(0)
    tags = [dice.choice(phrases, words, replace=False, p=weights / weights.sum()) for _ in range(images)]
    distinct = len(np.unique(tags))
    clip = load_clip(model)
    PhraseMemory(clip).encode(phrases[:batch])  # to warm up
    print(f"{images:,} images with {words} of {corpus:,} phrases each: {distinct:,} occur")
    for workers in (1, 2, 4, 8):
        memories = [PhraseMemory(clip) for _ in range(workers)]
        begun = time.process_time()
        for number, start in enumerate(range(0, images, batch)):
            memories[number % workers].encode(np.concatenate(tags[start : start + batch]).tolist())
        spent = time.process_time() - begun
        encoded = sum(memory.encoded for memory in memories)
        print(
            f"{workers} workers: {encoded:,} encoded, {encoded / distinct:.2f} times each, "
            f"{1000 * spent / images:.2f} ms an image"
        )


def _timed(worker: SegmentStage, rows: pa.Table, clock: Callable[[], float]) -> tuple[float, pa.Table]:
    begun = clock()
    found = worker(rows)
    return clock() - begun, found


def _file(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(render_scene(seed).image).save(stream, "JPEG", quality=92)
    return stream.getvalue()


if __name__ == "__main__":
    main()
