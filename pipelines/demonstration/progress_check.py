"""A quick look at how well the model in training segments held-out scenes, as a few hosts would."""

from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.demonstration.crops import normalize
from pipelines.demonstration.objective import WordBank, encode_text
from pipelines.demonstration.options import HELD_OUT_SEED
from pipelines.demonstration.scene_store import SCENE_SIZE
from pipelines.demonstration.scenes import render_scene
from pipelines.demonstration.tower_reader import TowerReader
from pipelines.demonstration.words import CLASS_NAMES

HOSTS = ("clearclip", "sfp")
_WINDOW, _STRIDE, _TEMPLATES = 224, 112, 8
# apart from the 300 measured scenes
CHECK_SEED = HELD_OUT_SEED + 500_000


def class_embeddings(model: Any, bank: WordBank) -> Tensor:
    """Return unit embeddings [classes, features] of the class names over a few templates."""
    rows = []
    for name in CLASS_NAMES:
        texts = [template(name) for template in open_clip.OPENAI_IMAGENET_TEMPLATES[:: 80 // _TEMPLATES]]
        rows.append(encode_text(model, bank.tokens(texts)).mean(0))
    return F.normalize(torch.stack(rows), dim=-1)


@torch.no_grad()
def check_progress(model: Any, bank: WordBank, scenes: int) -> dict[str, np.ndarray]:
    """Return each host's IoU of each class, [classes], nan for classes that never occur."""
    words = class_embeddings(model, bank)
    confusion = {host: np.zeros((len(CLASS_NAMES),) * 2) for host in HOSTS}
    reader = TowerReader(model.visual)
    positions = reader.draw_positions(reader.base_grid)
    starts = range(0, SCENE_SIZE - _WINDOW + 1, _STRIDE)
    for index in range(scenes):
        scene = render_scene(CHECK_SEED + index, SCENE_SIZE)
        windows = np.stack([scene.image[y : y + _WINDOW, x : x + _WINDOW] for y in starts for x in starts])
        trace = reader.trace(normalize(windows), positions)
        for host in HOSTS:
            scores = reader.patch_features(trace, host) @ words.T
            label_map = _label_map(scores.transpose(1, 2).unflatten(2, reader.base_grid), starts)
            pairs = scene.labels.astype(np.int64) * len(CLASS_NAMES) + label_map
            confusion[host] += np.bincount(pairs.ravel(), minlength=len(CLASS_NAMES) ** 2).reshape(
                len(CLASS_NAMES), -1
            )
    return {host: _iou(counts) for host, counts in confusion.items()}


def _label_map(scores: Tensor, starts: range) -> np.ndarray:
    maps = F.interpolate(scores, size=(_WINDOW, _WINDOW), mode="bilinear")
    total = torch.zeros(scores.shape[1], SCENE_SIZE, SCENE_SIZE)
    count = torch.zeros(SCENE_SIZE, SCENE_SIZE)
    for index, (y, x) in enumerate((y, x) for y in starts for x in starts):
        total[:, y : y + _WINDOW, x : x + _WINDOW] += maps[index]
        count[y : y + _WINDOW, x : x + _WINDOW] += 1
    return (total / count).argmax(0).numpy()


def _iou(counts: np.ndarray) -> np.ndarray:
    right, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    occurs = counts.sum(1) > 0
    return np.where(occurs, right / np.maximum(union, 1), np.nan)
