"""Draws any number of scenes with ground truth on all cores; memory stays at one shard a core."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict

from ovss_core.errors import OutputMismatchError
from pipelines.demonstration.formats import WRITERS, SceneShard
from pipelines.demonstration.options import ScenesConfig
from pipelines.demonstration.scenes import SCENES_VERSION
from pipelines.demonstration.words import CLASS_NAMES
from pipelines.run.progress import ProgressReport
from pipelines.run.state_files import read_json
from pipelines.storage import Folder

SETTINGS = "scenes.json"
_DONE = "_done"


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
        earlier = read_json(output, SETTINGS, {})
        if earlier != settings:
            raise OutputMismatchError(
                f"{output.public_uri} holds scenes drawn with {earlier}, now asked for with {settings}; give another "
                "--output, or the same settings to go on"
            )
        return
    output.write(SETTINGS, json.dumps(settings, indent=1).encode())
