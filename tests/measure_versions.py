"""Hold two checkouts against each other on CPUs: `python -m tests.measure_versions --old ../other-checkout`.

Both label the same pictures with the same weights, words and thresholds by SFP and FreeCP, each in a process of its own, in
turns; printed is the processor time of the new over the old, pair by pair, and how many pixels are the same. `--large` takes
the peak of memory of one image of 100 megapixels and of 5,000 words instead.

The checkout that is measured need not have this file, but the modules that one of the names in `ENGINES`, `WEIGHTS` and `TEXTS` finds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parents[1]
ENGINES = "ovss_core.engine.engine", "ovss_core.inference.engine"
WEIGHTS = "ovss_core.clip.weights", "ovss_core.encoders.checkpoints"
TEXTS = "ovss_core.clip.text", "ovss_core.encoders.text_encoder"
TEXT_NAMES = "EncodedVocabulary", "TextClassifier"
THRESHOLDS = {"thresholds": "fixed", "redundancy_threshold": 0.1, "ambiguity_threshold": 0.7}
"""Equal numbers, for what a checkout takes by itself has changed; FreeCP's own softmax is one of cosines times 100."""
SCALE = 100.0


@dataclass(frozen=True)
class Case:
    """What both label.

    Attributes:
        model: An architecture, or "demo".
        images: Pictures of 375 x 500 pixels; 0 makes one of 10,000 x 10,000.
        words: Classes.
    """

    model: str
    images: int
    words: int


CASES = Case("demo", 24, 150), Case("ViT-B-16-quickgelu", 3, 150)
LARGE = Case("demo", 0, 150), Case("demo", 2, 5_000)


def _find(*names: str) -> Any:
    """Import the first of some modules that the checkout has; an editable install would find another's."""
    for name in names:
        if Path(*name.split(".")).with_suffix(".py").is_file():
            return import_module(name)
    raise SystemExit(f"none of {', '.join(names)} is in this checkout")


def work(folder: Path) -> None:
    """Label what lies in `folder` once for each line of standard input; write processor time, peak memory and labels."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    given = np.load(folder / "inputs.npz")
    config, words = import_module("ovss_core.config"), import_module("ovss_core.vocabulary")
    model = config.ModelConfig(str(given["model"]), str(given["weights"]))
    names = tuple(words.VocabularyClass(f"class {k}", (f"class {k}",)) for k in range(len(given["words"])))
    rows, null = torch.from_numpy(given["words"]), torch.from_numpy(given["null"])
    texts = _find(*TEXTS)
    text = next(getattr(texts, name) for name in TEXT_NAMES if hasattr(texts, name))
    purification = config.PurificationConfig(**THRESHOLDS, score_scale=SCALE)
    settings = config.SegmenterConfig(model=model, host="sfp", purification=purification)
    clip = _find(*WEIGHTS).load_clip(model)
    engine = _find(*ENGINES).SegmentationEngine(
        settings, clip, text(words.Vocabulary(names), rows, rows, null, "versions")
    )
    pictures = list(given["pictures"])
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        results = engine.segment(pictures)
        taken = time.process_time() - start
        np.save(folder / f"labels-{os.getpid()}.npy", np.stack([result.label_map for result in results]))
        crops = sum(len(group.boxes) for result in results for group in result.groups)
        kept = sum(len(result.kept) for result in results)
        print(taken, _peak(), kept / len(results), crops / len(results), flush=True)


def _peak() -> int:
    """Return the most bytes this process has held; what the system tells a parent counts the parent's own, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


@dataclass
class Worker:
    """A process of one checkout.

    Attributes:
        labels: What it found in its last turn, uint8 or uint16 [images, height, width].
    """

    process: "subprocess.Popen[str]"
    folder: Path

    def turn(self) -> "Turn":
        """Let it label once."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline().split()
        if len(line) != len(fields(Turn)):
            raise SystemExit("a checkout could not label; its own words are above")
        return Turn(*map(float, line))

    @property
    def labels(self) -> np.ndarray:
        found: np.ndarray = np.load(self.folder / f"labels-{self.process.pid}.npy")
        return found


@dataclass(frozen=True)
class Turn:
    """One turn: processor seconds, bytes at the peak of the process so far, kept classes and regions an image."""

    seconds: float
    peak: float
    kept: float
    regions: float


@contextmanager
def worker(checkout: Path, folder: Path) -> Iterator[Worker]:
    """Start a process of one checkout, one thread, and end it with the block."""
    command = [sys.executable, str(Path(__file__).resolve()), "--work", str(folder)]
    surroundings = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=checkout,
        env=surroundings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{checkout} could not build an engine; its own words are above")
        yield Worker(process, folder)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait()


def prepare(case: Case, folder: Path) -> None:
    """Write pictures, weights and words to a file that every checkout can read."""
    from ovss_core.clip.weights import load_clip
    from ovss_core.config import ModelConfig
    from pipelines.benchmark.options import BenchmarkConfig
    from pipelines.benchmark.workload import load_workload

    model = ModelConfig("demo")
    if case.model != "demo":
        torch.save(load_clip(ModelConfig(case.model, "random")).model.state_dict(), folder / "weights.pt")
        model = ModelConfig(case.model, str(folder / "weights.pt"))
    drawn = load_workload(
        BenchmarkConfig(
            image_count=max(case.images, 2), model=model, vocabularies=(case.words,), device="cpu"
        )
    )
    pictures = drawn.pictures[: case.images]
    if not case.images:
        rows, columns = (np.arange(10_000) * length // 10_000 for length in drawn.pictures[0].shape[:2])
        pictures = [drawn.pictures[0][rows][:, columns]]
    np.savez(
        folder / "inputs.npz",
        model=case.model,
        weights=model.pretrained,
        pictures=np.stack(pictures),
        words=drawn.embeddings[: case.words].numpy(),
        null=drawn.null.numpy(),
    )


def compare(old: Path, case: Case, pairs: int) -> None:
    """Print a row for turns of two processes; each has labelled once before."""
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        prepare(case, folder)
        both = [stack.enter_context(worker(checkout, folder)) for checkout in (old, HERE)]
        last = [one.turn() for one in both]
        ratios = []
        for turn in range(pairs):
            # who begins changes: a machine that grows slower would always harm the second
            order = (0, 1) if turn % 2 == 0 else (1, 0)
            for place in order:
                last[place] = both[place].turn()
            ratios.append(last[1].seconds / last[0].seconds)
        same = float(np.mean(both[0].labels == both[1].labels))
    middle, seconds = statistics.median(ratios), [turn.seconds for turn in last]
    print(
        f"| {case.model}, {case.images} pictures, {case.words} words | {middle:.3f} | {min(ratios):.3f} to "
        f"{max(ratios):.3f} | {seconds[0]:.2f} / {seconds[1]:.2f} | {last[0].kept:.1f} / {last[1].kept:.1f} | "
        f"{last[0].regions:.1f} / {last[1].regions:.1f} | {same:.4%} |",
        flush=True,
    )


def measure_peaks(old: Path, case: Case) -> None:
    """Print a row with the peaks of memory of two processes, before labelling and after it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepare(case, folder)
        turns = []
        for checkout in (old, HERE):
            with worker(checkout, folder) as one:
                turns.append(one.turn())
    what = f"{case.images} pictures" if case.images else "one picture of 100 megapixels"
    peaks, seconds = [turn.peak / 1e6 for turn in turns], [turn.seconds for turn in turns]
    print(
        f"| {what}, {case.words} words | {peaks[0]:.0f} MB / {peaks[1]:.0f} MB | "
        f"{seconds[0]:.1f} s / {seconds[1]:.1f} s |",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of old / new."""
    parser = argparse.ArgumentParser("python -m tests.measure_versions", description=__doc__)
    parser.add_argument("--old", type=Path, help="another checkout of this repository")
    parser.add_argument("--pairs", type=int, default=7, help="turns of each")
    parser.add_argument("--large", action="store_true", help="peaks of memory instead of time")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.work:
        work(given.work)
        return 0
    if given.old is None:
        parser.error("give --old, another checkout")
    if given.large:
        print("| old / new | peak of memory | processor time |\n|---|---|---|")
        for case in LARGE:
            measure_peaks(given.old.resolve(), case)
        return 0
    print("| new over old | median | range | seconds, last | kept | regions | equal pixels |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        compare(given.old.resolve(), case, given.pairs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
