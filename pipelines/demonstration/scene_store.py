"""Scenes drawn once and kept in one file on disk, from which training takes its crops."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.demonstration.scenes import SCENES_VERSION, render_scene

SCENE_SIZE = 336
TRAINING_SEED = 0

_CHUNK = 50


def open_scene_store(path: Path, count: int, first_seed: int, workers: int) -> np.ndarray:
    """Return `count` scenes as a read-only memory map, drawing those that the file does not hold yet.

    Args:
        path: The file; a text file beside it (`.done`) counts the scenes drawn, so that an interrupted
            run goes on where it stopped.
        count: Number of scenes; scene i has seed `first_seed + i`.
        first_seed: Seed of the first scene.
        workers: Processes that draw.

    Returns:
        uint8 [count, 336, 336, 4]: red, green, blue and the class index.
    """
    shape = (count, SCENE_SIZE, SCENE_SIZE, 4)
    marker = path.with_suffix(f".v{SCENES_VERSION}-{first_seed}-{count}.done")
    done = int(marker.read_text()) if marker.is_file() and path.is_file() else 0
    if done < count:
        path.parent.mkdir(parents=True, exist_ok=True)
        store = np.memmap(path, np.uint8, "r+" if done else "w+", shape=shape)
        chunks = [(first_seed + start, min(_CHUNK, count - start)) for start in range(done, count, _CHUNK)]
        for scenes in _draw_chunks(chunks, workers):
            store[done : done + len(scenes)] = scenes
            done += len(scenes)
            marker.write_text(str(done))
        store.flush()
    return np.memmap(path, np.uint8, "r", shape=shape)


def _draw_chunks(chunks: list[tuple[int, int]], workers: int) -> Iterator[np.ndarray]:
    if workers == 1:
        yield from map(_draw_chunk, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_draw_chunk, chunks)


def _draw_chunk(chunk: tuple[int, int]) -> np.ndarray:
    first, count = chunk
    scenes = np.empty((count, SCENE_SIZE, SCENE_SIZE, 4), np.uint8)
    for index in range(count):
        scene = render_scene(first + index, SCENE_SIZE)
        scenes[index, :, :, :3], scenes[index, :, :, 3] = scene.image, scene.labels
    return scenes
