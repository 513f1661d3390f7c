"""Draws any number of scenes with ground truth on all cores; memory stays at one shard a core."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ovss_core.demonstration.scenes import SCENES_VERSION
from ovss_core.demonstration.words import CLASS_NAMES
from ovss_core.errors import ConfigError, OutputMismatchError
from pipelines.progress import ProgressReport
from pipelines.scene_formats import SEED_SPACING, WRITERS, SceneShard
from pipelines.storage import Folder

SETTINGS = "scenes.json"
_DONE = "_done"


@dataclass(frozen=True)
class ScenesConfig:
    """What to draw.

    Args:
        output: Folder or URI.
        count: Number of scenes, at least 1.
        seed: Scene i depends on this seed and on i alone; at least 0.
        size: Side of the pictures in pixels, at least 32.
        format: "folder" (``images/`` and ``masks/``), "parquet" or "webdataset".
        image_format: "png" keeps the drawn pixels, "jpeg" is smaller.
        shard: Scenes a shard; a core holds one shard in memory.
        workers: Processes; None for one a core.
    """

    output: str
    count: int
    seed: int = 0
    size: int = 336
    format: str = "folder"
    image_format: str = "png"
    shard: int = 256
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (
            ("count", 1, SEED_SPACING),
            ("seed", 0, 2**53),
            ("size", 32, 8192),
            ("shard", 1, 1_000_000),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"--{name} is {getattr(self, name)}; give a number from {least:,} to {most:,}"
                )
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers is {self.workers}; give at least 1, or leave it out for one a core")
        for name, choices in (("format", tuple(WRITERS)), ("image_format", ("png", "jpeg"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"--{name} is {getattr(self, name)!r}; give one of {', '.join(choices)}")


def draw_scenes(config: ScenesConfig) -> int:
    """Draw the scenes that the output does not hold yet; files appear under their names only when whole.

    The output also gets ``vocabulary.txt`` (a class's line is its value in the masks), ``scenes.json`` (the
    settings) and ``_done/`` (one empty file a finished shard, so that the same command goes on after a stop).

    Returns:
        The number of scenes drawn by this call.

    Raises:
        OutputMismatchError: The output holds scenes of other settings.
        StorageError: The output cannot be written.
    """
    output = Folder(config.output)
    output.check_writable()
    _claim(output, config)
    output.write("vocabulary.txt", "".join(f"{name}\n" for name in CLASS_NAMES).encode())
    finished = set(output.names(_DONE))
    missing = [shard for shard in _shards(config) if _marker(shard) not in finished]
    todo = sum(shard.count for shard in missing)
    workers = min(config.workers or os.cpu_count() or 1, max(1, len(missing)))
    with ProgressReport(config.count, done=config.count - todo) as progress:
        for count in _run(config, missing, workers):
            progress.advance(count, 0)
    return todo


def _run(config: ScenesConfig, shards: list[SceneShard], workers: int) -> Iterator[int]:
    tasks = [(config.output, config.format, shard) for shard in shards]
    if workers == 1:
        yield from map(_draw_shard, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_draw_shard, tasks)


def _draw_shard(task: tuple[str, str, SceneShard]) -> int:
    uri, layout, shard = task
    output = Folder(uri)
    WRITERS[layout](output, shard)
    output.write(f"{_DONE}/{_marker(shard)}", b"")
    return shard.count


def _shards(config: ScenesConfig) -> Iterator[SceneShard]:
    for number, first in enumerate(range(0, config.count, config.shard)):
        count = min(config.shard, config.count - first)
        yield SceneShard(number, first, count, config.seed, config.size, config.image_format)


def _marker(shard: SceneShard) -> str:
    return f"{shard.first:09d}-{shard.count}"


def _claim(output: Folder, config: ScenesConfig) -> None:
    """Write the settings down, or compare them with what the output was begun with."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("output", "workers")}
    settings["scenes_version"] = SCENES_VERSION
    if output.exists(SETTINGS):
        earlier = json.loads(output.read(SETTINGS))
        if earlier != settings:
            raise OutputMismatchError(
                f"{output.public_uri} holds scenes drawn with {earlier}, now asked for with {settings}; give another "
                "--output, or the same settings to go on"
            )
        return
    output.write(SETTINGS, json.dumps(settings, indent=1).encode())
