"""What an image costs the processors outside the model, step by step, here and in another checkout.

Everything that surrounds the model is run on real pictures and on proposals and labels of a real one's size: decoding,
resizing, putting pixels together, proposals into Arrow and out of it, masks as PNG, rows, files; and Ray's own part by
`pipelines.benchmark.job_costs`. With ``--against CHECKOUT`` both take turns in one run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pyarrow as pa
import torch

from ovss_core.class_purification.class_maps import NOBODY
from ovss_core.class_purification.winners import AmbiguousRegions
from ovss_core.config import SegmenterConfig
from ovss_core.engine.proposal import Decisions, Proposals
from ovss_core.engine.waves import plan_waves
from ovss_core.images import plain_jpeg
from ovss_core.images.decode import EncodedImage
from ovss_core.images.pixels import ImagePixels
from ovss_core.images.resize import resize_image
from ovss_core.images.windows import WindowLayout
from ovss_core.results import AmbiguityGroup, BoxDecision, PresentClass, ScoredClasses, Segmentation
from ovss_core.vocabulary import Vocabulary
from pipelines.benchmark.workload import picture_files
from pipelines.label.masks import encode_mask
from pipelines.label.proposals import pack, unpack
from pipelines.label.table import label_column, label_table
from pipelines.run.manifest_files import write_part
from pipelines.run.schema import FAILURE, PROPOSAL, SECONDS
from pipelines.run.sink import WriteFragments, merge_part
from pipelines.sources import ImageRecord
from pipelines.storage import Folder

try:
    import simplejpeg
except ImportError:  # as in ovss_core.images.plain_jpeg
    simplejpeg = None

WINDOWS = SegmenterConfig().windows
PATCH, PATCHES, CROP = 16, 196, 112
BATCH = 64
_LIMIT = 10**8
_NO_LIMIT = sys.maxsize
_REPEATS = 20
_PRESENT, _GROUPS = 8, 3
_LITTLE = np.zeros((8, 8, 3), np.uint8)
_LITTLE_FILE = cv2.imencode(".jpg", _LITTLE)[1].tobytes()
RELEASING: Sequence[tuple[ModuleType, str, Sequence[object]]] = [
    (cv2, "resize", (_LITTLE, (7, 7))),
    (np, "concatenate", ([_LITTLE, _LITTLE],)),
    (plain_jpeg, "count_scans", (_LITTLE_FILE,)),
    *([(simplejpeg, "decode_jpeg", (_LITTLE_FILE, "RGB"))] if simplejpeg else []),
]
"""The calls in which pictures are looked through, decoded, resized and copied, and which let other threads run Python
meanwhile; and arguments with which each has next to nothing to do."""


@dataclass(frozen=True)
class HostCosts:
    """What to measure.

    Attributes:
        images: Folder of photographs; None paints scenes.
        count: How many of them.
        classes: Words of the vocabulary.
        kept: Words that an image keeps.
        crops: Regions of an image that are shown to the encoder again.
        repeats: How often each step is measured; the least counts.
    """

    images: Path | None = None
    count: int = BATCH
    classes: int = 150
    kept: int = 17
    crops: int = 4
    repeats: int = 5


def measure_steps(config: HostCosts) -> dict[str, float]:
    """Return core-milliseconds an image by step.

    Returns:
        The steps, their sum ``all``, ``lock`` (core-milliseconds an image under Python's lock until the pixels are put
        together; see `locked_seconds`), and ``proposal_kb``.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    files = picture_files(config.images, config.count)
    pictures = [EncodedImage(data, _LIMIT).pixels() for data in files]
    resized = [resize_image(picture, WINDOWS.short_side, WINDOWS.long_side, PATCH) for picture in pictures]
    layouts = [WindowLayout.of_image(picture, WINDOWS) for picture in resized]
    chance = np.random.default_rng(0)
    proposals = _proposals([picture.shape[:2] for picture in pictures], layouts, config, chance)
    column = _to_arrow(proposals)
    results = [sample_result(picture.shape[:2], config, chance) for picture in pictures]
    masks = [encode_mask(result.label_map) for result in results]

    def prepare(data: bytes) -> None:
        picture = EncodedImage(data, _LIMIT).pixels()
        resize_image(picture, WINDOWS.short_side, WINDOWS.long_side, PATCH)

    steps: dict[str, Callable[[], object]] = {
        "decode": lambda: [EncodedImage(data, _LIMIT).pixels() for data in files],
        "resize": lambda: [
            resize_image(picture, WINDOWS.short_side, WINDOWS.long_side, PATCH) for picture in pictures
        ],
        "pixels put together": lambda: _by_window_size(resized, layouts),
        "proposals to Arrow": lambda: _to_arrow(proposals),
        "proposals from Arrow": lambda: [
            Proposals.from_rows([unpack(row) for row in part.to_pylist()], WINDOWS, PATCHES, CROP)
            for part in _like_sized(column, layouts)
        ],
        "masks to PNG": lambda: [encode_mask(result.label_map) for result in results],
        "label rows to Arrow": lambda: label_column(results, masks),
        "fragments and finished files": lambda: _store(results, masks),
    }
    spent = {
        name: min(_processor_seconds(step) for _ in range(config.repeats)) for name, step in steps.items()
    }
    spent["fragments and finished files"] -= spent["label rows to Arrow"]
    costs = {name: 1000 * seconds / config.count for name, seconds in spent.items()}
    held = sum(locked_seconds(partial(prepare, data), config.repeats) for data in files)
    held += locked_seconds(lambda: _by_window_size(resized, layouts), config.repeats)
    return {
        **costs,
        "all": sum(costs.values()),
        "lock": 1000 * held / config.count,
        "proposal_kb": column.nbytes / config.count / 1000,
    }


def _processor_seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def locked_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the processor seconds of `work` in which no other thread may run Python; the least of `repeats` runs.

    That is the processor time of this thread but for what it spends in `RELEASING`. Of those calls as much is counted
    as one takes that has next to nothing to do. So what other processes do to the machine is no part of it.
    """
    spent: list[float] = []
    for _ in range(repeats):
        with _timed(RELEASING) as inside:
            start = time.thread_time()
            work()
            spent.append(time.thread_time() - start - sum(inside.values()))
    return min(spent)


@contextmanager
def _timed(functions: Sequence[tuple[ModuleType, str, Sequence[object]]]) -> Iterator[Mapping[str, float]]:
    """Yield the processor seconds of each function's calls above those of one with nothing to do."""
    inside: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, call: Callable[..., Any], least: float) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return call(*arguments, **options)
            finally:
                inside[name] += max(0.0, time.thread_time() - start - least)

        return run

    with ExitStack() as stack:
        for module, name, little in functions:
            call = getattr(module, name)
            least = _call_seconds(call, little)
            stack.enter_context(patch.object(module, name, timed(name, call, least)))
        yield inside


def _call_seconds(call: Callable[..., object], arguments: Sequence[object]) -> float:
    def seconds() -> float:
        start = time.thread_time()
        call(*arguments)
        return time.thread_time() - start

    return min(seconds() for _ in range(_REPEATS))


def _by_window_size(resized: Sequence[np.ndarray], layouts: Sequence[WindowLayout]) -> None:
    for chosen in plan_waves(layouts, _NO_LIMIT):
        ImagePixels.of([resized[place] for place in chosen], [layouts[place] for place in chosen])


def _like_sized(column: pa.Array, layouts: Sequence[WindowLayout]) -> list[pa.Array]:
    return [column.take(pa.array(chosen)) for chosen in plan_waves(layouts, _NO_LIMIT)]


def _proposals(
    sizes: Sequence[tuple[int, int]],
    layouts: Sequence[WindowLayout],
    config: HostCosts,
    chance: np.random.Generator,
) -> Proposals:
    """Return proposals as they come from a batch: maps that are smooth and zero in half of their places."""
    images, windows = len(sizes), sum(map(len, layouts))
    classes = np.sort(
        chance.permuted(np.tile(np.arange(config.classes), (images, 1)), axis=1)[:, : config.kept]
    )
    side = int(PATCHES**0.5)
    coarse = chance.random((windows * config.kept, 4, 4), np.float32) - 0.5
    maps = (
        np.stack([cv2.resize(one, (side, side)) for one in coarse]).clip(0, 1).reshape(windows, -1, PATCHES)
    )
    levels = torch.from_numpy(maps).mul_(65_535).round_().div_(65_535)
    regions = AmbiguousRegions(
        image=np.arange(images).repeat(config.crops),
        window=np.full(images * config.crops, -1),
        group=np.arange(images * config.crops),
        corners=np.tile([0, 0, 90, 120], (images * config.crops, 1)),
        members=classes[:, :3].repeat(config.crops, 0),
    )
    crops = chance.integers(0, 256, (len(regions), 8, 8, 3), np.uint8)
    pixels = np.stack([cv2.resize(one, (CROP, CROP), interpolation=cv2.INTER_CUBIC) for one in crops])
    scores = chance.random((images, config.classes), np.float32)
    assert NOBODY not in classes
    return Proposals(
        tuple(sizes),
        tuple(layouts),
        levels,
        decisions=Decisions(scores, classes, regions),
        crops=torch.from_numpy(pixels),
    )


def _to_arrow(proposals: Proposals) -> pa.Array:
    return pa.array([pack(row) for row in proposals.to_rows()], PROPOSAL)


def sample_result(size: tuple[int, int], config: HostCosts, chance: np.random.Generator) -> Segmentation:
    """Return labels of an image of so many rows and columns as a photograph has: some classes in large pieces with crooked borders."""
    height, width = size
    coarse = chance.random((_PRESENT, 9, 12), np.float32)
    label_map = np.stack([cv2.resize(one, (width, height)) for one in coarse]).argmax(0).astype(np.uint8)
    names = tuple(f"class {index}" for index in range(config.classes))
    kept = np.sort(chance.choice(config.classes, config.kept, replace=False))
    scores = chance.random(config.classes, np.float32)
    listed = [
        ScoredClasses(names, which, scores[which])
        for which in (kept, np.setdiff1d(np.arange(config.classes), kept))
    ]
    present = tuple(PresentClass(index, names[index], 9000 + index, 0.125, 0.5) for index in range(_PRESENT))
    boxes = tuple(BoxDecision(5, 6, 90, 120, 1) for _ in range(-(-config.crops // _GROUPS)))
    groups = tuple(AmbiguityGroup((1, 2, 3), boxes) for _ in range(_GROUPS))
    return Segmentation(label_map, present, listed[0], listed[1], groups)


def _store(results: Sequence[Segmentation], masks: Sequence[bytes]) -> None:
    """Store a part in two fragments and merge it; the rows are made here, and their cost is taken off by the caller."""
    rows = label_column(results, masks)
    table_of_labels = label_table(sample_vocabulary(len(results[0].kept) + len(results[0].removed)))
    names = [f"{place:06d}.jpg" for place in range(len(results))]
    with tempfile.TemporaryDirectory() as root:
        part, output = "part-00000", Folder(root)
        write_part(output, part, [ImageRecord(name, name, "file", path=name) for name in names])
        columns = {
            "part": pa.array([part] * len(names)),
            "image_id": pa.array(names),
            "uri": pa.array(names),
            "part_images": pa.nulls(len(names), pa.int64()),
            "failure": pa.nulls(len(names), FAILURE),
            "seconds": pa.nulls(len(names), SECONDS),
            "result": rows,
        }
        table, half = pa.table(columns), len(names) // 2
        for piece in (table.slice(0, half), table.slice(half)):
            WriteFragments(root, table_of_labels).write(piece)
        merge_part(root, part, table_of_labels)


def sample_vocabulary(classes: int) -> Vocabulary:
    """Return a vocabulary of the words that `sample_result` names."""
    return Vocabulary.from_names([f"class {index}" for index in range(classes)])


def compare(options: Sequence[str], checkouts: Mapping[str, Path], turns: int) -> dict[str, dict[str, float]]:
    """Measure several checkouts in turn, each in a process of its own; medians over the turns.

    Args:
        options: Flags of this command.
        checkouts: Root folders by name.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(turns):
        for name, root in checkouts.items():
            environment = {**os.environ, "PYTHONPATH": str(root.resolve()), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-P", __file__, "--json", *options]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(json.loads(done.stdout))
    return {
        name: {step: statistics.median(run[step] for run in runs) for step in runs[0]}
        for name, runs in found.items()
    }


def as_table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """Return the costs side by side."""
    lines = [f"| core-ms an image | {' | '.join(costs)} |", "|---" * (1 + len(costs)) + "|"]
    for step in next(iter(costs.values())):
        lines.append(f"| {step} | {' | '.join(f'{column[step]:.3f}' for column in costs.values())} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m pipelines.benchmark.host_costs", description=__doc__)
    for name, default in vars(HostCosts()).items():
        kind = Path if default is None else int
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument(
        "--against", type=Path, help="Root of another checkout, measured in turn with this one."
    )
    parser.add_argument("--turns", type=int, default=3, help="With --against: turns of each checkout.")
    parser.add_argument("--json", action="store_true", help="Print the costs for programs.")
    given = vars(parser.parse_args(arguments))
    against, turns, as_json = (given.pop(name) for name in ("against", "turns", "json"))
    if against:
        options = [f"--{name}={value}" for name, value in given.items() if value is not None]
        here = Path(__file__).resolve().parents[2]
        print(as_table(compare(options, {"before": against, "now": here}, turns)))
        return 0
    costs = measure_steps(HostCosts(**given))
    print(json.dumps(costs) if as_json else as_table({"now": costs}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
