"""Random crops of scenes with captions of what each shows: the batches of the training."""

import math
import random
from dataclasses import dataclass

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from pipelines.demonstration.scenes import describe
from pipelines.demonstration.words import CLASS_NAMES

PATCH = 16
_STUFF = 14  # the first classes are sky, land and water; the others are things
_MEAN = np.asarray(open_clip.OPENAI_DATASET_MEAN, np.float32) * 255
_STD = np.asarray(open_clip.OPENAI_DATASET_STD, np.float32) * 255


@dataclass(frozen=True)
class CropBatch:
    """Crops of one size.

    Attributes:
        images: float32 [batch, 3, resolution, resolution], normalized as CLIP's.
        patch_shares: float32 [batch, patches, classes], each class's share of each patch.
        captions: One sentence a crop.
    """

    images: Tensor
    patch_shares: Tensor
    captions: list[str]


def normalize(images: np.ndarray) -> Tensor:
    """Turn uint8 [batch, height, width, 3] into CLIP's normalized float32 [batch, 3, height, width]."""
    return torch.from_numpy((images.astype(np.float32) - _MEAN) / _STD).permute(0, 3, 1, 2).contiguous()


def draw_crops(
    store: np.ndarray, batch: int, resolution: int, sides: tuple[float, float], rng: random.Random
) -> CropBatch:
    """Cut `batch` square crops from random scenes; half of them are centerd on a thing.

    Args:
        store: uint8 [scenes, size, size, 4], see `open_scene_store`.
        batch: Number of crops.
        resolution: Side of the crops after resizing, pixels.
        sides: Least and greatest side before resizing, pixels of the scene (drawn log-uniformly).
        rng: Where every choice comes from.
    """
    images = np.empty((batch, resolution, resolution, 3), np.uint8)
    labels = np.empty((batch, resolution, resolution), np.uint8)
    for index in range(batch):
        scene = store[rng.randrange(len(store))]
        images[index], labels[index] = _crop(scene, resolution, sides, rng)
    shares = patch_shares(labels)
    captions = [_caption(crop.mean(0), rng) for crop in shares]
    return CropBatch(normalize(images), torch.from_numpy(shares), captions)


def patch_shares(labels: np.ndarray) -> np.ndarray:
    """Return each class's share of each 16-pixel patch, float32 [batch, patches, classes]."""
    batch, height, width = labels.shape
    rows, columns, classes = height // PATCH, width // PATCH, len(CLASS_NAMES)
    patches = (
        labels.reshape(batch, rows, PATCH, columns, PATCH).transpose(0, 1, 3, 2, 4).reshape(-1, PATCH * PATCH)
    )
    offset = np.arange(len(patches), dtype=np.int64)[:, None] * classes
    counts = np.bincount((patches + offset).ravel(), minlength=len(patches) * classes)
    return (counts.reshape(batch, rows * columns, classes) / PATCH**2).astype(np.float32)


def _crop(
    scene: np.ndarray, resolution: int, sides: tuple[float, float], rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    size = scene.shape[0]
    side = min(size, round(math.exp(rng.uniform(math.log(sides[0]), math.log(sides[1])))))
    top, left = rng.randint(0, size - side), rng.randint(0, size - side)
    if rng.random() < 0.5:
        top, left = _on_a_thing(scene[:, :, 3], side, top, left, rng)
    window = np.ascontiguousarray(scene[top : top + side, left : left + side])
    pick = ((np.arange(resolution) + 0.5) * side / resolution).astype(np.int64)
    labels = window[:, :, 3][pick[:, None], pick]
    image = np.asarray(
        Image.fromarray(window[:, :, :3]).resize((resolution, resolution), Image.Resampling.BILINEAR),
        np.float32,
    )
    gain, offset = rng.uniform(0.8, 1.2), rng.uniform(-20, 20)
    image = np.clip(image * gain + offset, 0, 255).astype(np.uint8)
    return (image[:, ::-1], labels[:, ::-1]) if rng.random() < 0.5 else (image, labels)


def _on_a_thing(labels: np.ndarray, side: int, top: int, left: int, rng: random.Random) -> tuple[int, int]:
    coarse, size = labels[4::8, 4::8], labels.shape[0]
    things = [int(index) for index in np.unique(coarse) if index >= _STUFF]
    if not things:
        return top, left
    rows, columns = np.nonzero(coarse == rng.choice(things))
    spot = rng.randrange(len(rows))
    jitter = side // 4
    y, x = (int(at[spot]) * 8 + 4 - side // 2 + rng.randint(-jitter, jitter) for at in (rows, columns))
    return min(max(y, 0), size - side), min(max(x, 0), size - side)


def _caption(shares: np.ndarray, rng: random.Random) -> str:
    return describe(shares, rng, most=rng.choice((1, 2, 3, 4, 5)), least_share=0.02)
