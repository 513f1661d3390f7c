"""Trains the demonstration model from scratch; an interrupted training goes on from its last checkpoint."""

import dataclasses
import json
import math
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from ovss_core.clip.demo import DEMO_ARCHITECTURE, register_demo_model
from ovss_core.errors import ConfigError
from pipelines.demonstration.crops import draw_crops
from pipelines.demonstration.initial_weights import set_initial_weights
from pipelines.demonstration.objective import FIRST_WEIGHTS, SECOND_WEIGHTS, WordBank, training_loss
from pipelines.demonstration.progress_check import check_progress
from pipelines.demonstration.recipe import TrainingConfig
from pipelines.demonstration.scene_store import TRAINING_SEED, open_scene_store
from pipelines.demonstration.tower_reader import TowerReader
from pipelines.demonstration.word_warmup import warm_up_words
from pipelines.demonstration.words import CLASS_NAMES

SMALL_SIDES, LARGE_SIDES = (85.0, 200.0), (170.0, 336.0)
"""Sides of the crops, pixels of the scene, before they become 112 and 224 pixels."""


def train_demo(folder: Path, config: TrainingConfig, stop_after: int | None = None) -> Path:
    """Train, or go on training, and write the weights.

    Args:
        folder: Holds the scenes, the checkpoint and, at the end, `ovss_demo.safetensors`.
        config: The recipe; it must be the one that the checkpoint was made with.
        stop_after: Stop (with a checkpoint) after this many steps in all.

    Returns:
        The path of the weights, or of the checkpoint when stopped early.

    Raises:
        ConfigError: The folder holds a checkpoint of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers = config.workers or os.cpu_count() or 1
    store = open_scene_store(folder / "scenes.u8", config.scenes, TRAINING_SEED, workers)
    checkpoint = folder / "checkpoint.pt"
    model, optimizer = _create(config, None if checkpoint.is_file() else store)
    step = _resume(checkpoint, config, model, optimizer)
    lanes = _Lanes(model, store, config)
    if step == 0:
        last = warm_up_words(model, lanes.bank, config.word_steps, config.learning_rate, config.seed)
        _say(f"words {config.word_steps} steps, loss {last:.3f}")
    end = config.steps if stop_after is None else min(stop_after, config.steps)
    started = time.monotonic()
    while step < end:
        terms = lanes.step(optimizer, step)
        step += 1
        if step % 10 == 0 or step == end:
            listed = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            _say(
                f"step {step}/{config.steps} {listed} scale {model.logit_scale.exp().item():.1f} seconds {time.monotonic() - started:.0f} of cpu {time.process_time():.0f}"
            )
        if step % config.checkpoint_every == 0 or step == end:
            _save_checkpoint(checkpoint, config, model, optimizer, step)
        if config.check_scenes and (step % config.check_every == 0 or step == config.steps):
            _report_check(model, lanes.bank, config.check_scenes)
    if step < config.steps:
        return checkpoint
    return write_weights(model, folder / "ovss_demo.safetensors")


def class_weights(labels: np.ndarray) -> Tensor:
    """Return how much a patch of each class counts: the inverse root of its share of the pixels, mean 1."""
    counts = np.bincount(labels.ravel(), minlength=len(CLASS_NAMES)).astype(np.float64)
    share = np.maximum(counts / counts.sum(), 1e-3)
    weights = 1 / np.sqrt(share)
    return torch.from_numpy(weights / weights.mean()).float()


def write_weights(model: Any, path: Path) -> Path:
    """Write a model's weights in float16 safetensors, whole or not at all."""
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(path)
    return path


def _create(config: TrainingConfig, store: np.ndarray | None) -> tuple[Any, torch.optim.Optimizer]:
    """Create the towers, with initial weights that fit the scenes; None where a checkpoint will replace all weights."""
    register_demo_model()
    torch.manual_seed(config.seed)
    model = open_clip.create_model(DEMO_ARCHITECTURE, pretrained=None)
    if store is not None:
        crops = random.Random(f"ovss initial weights {config.seed}")
        set_initial_weights(model.visual, draw_crops(store, 64, 112, SMALL_SIDES, crops).images)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(20))
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in name]
    kept = [p for name, p in model.named_parameters() if p.ndim < 2 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return model.train(), torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


class _Lanes:
    """Computes the parts of a batch side by side, one thread each, and averages their gradients in a fixed order.

    One synchronization a step keeps the speed up on cores that others use too, where an operation spread over all
    cores waits for the slowest of them.
    """

    def __init__(self, model: Any, store: np.ndarray, config: TrainingConfig) -> None:
        self.model, self.store, self.config = model, store, config
        self.reader = TowerReader(model.visual)
        self.parameters = list(model.parameters())
        self.bank = WordBank(open_clip.get_tokenizer(DEMO_ARCHITECTURE))
        self.class_weights = class_weights(store[:: max(1, len(store) // 500), ::8, ::8, 3])
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(config.lanes, initializer=torch.set_num_threads, initargs=(1,))

    def step(self, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
        """Take one step and return the loss terms."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        parts = list(self._pool.map(self._part, [step] * self.config.lanes, range(self.config.lanes)))
        for parameter, gradient, *others in zip(self.parameters, *(part[0] for part in parts), strict=True):
            for other in others:
                gradient.add_(other)
            parameter.grad = gradient.div_(len(parts))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        optimizer.step()
        return {name: sum(part[1][name] for part in parts) / len(parts) for name in parts[0][1]}

    def _part(self, step: int, lane: int) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        config = self.config
        rng = random.Random(f"ovss training {config.seed} {step} {lane}")
        if step >= config.small_steps and step % 4 != 0:
            batch = draw_crops(self.store, max(1, config.large_batch // config.lanes), 224, LARGE_SIDES, rng)
        else:
            batch = draw_crops(self.store, max(1, config.small_batch // config.lanes), 112, SMALL_SIDES, rng)
        weights = FIRST_WEIGHTS if step < config.small_steps else SECOND_WEIGHTS
        loss, terms = training_loss(
            self.model, self.reader, batch, self.bank, self.class_weights, weights, rng
        )
        return torch.autograd.grad(loss, self.parameters), terms


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate at a step: a linear rise, its peak through the first part, a linear fall over the second."""
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    fall = min(1.0, (config.steps - step) / max(1, config.large_steps))
    return config.learning_rate * rise * fall


def _save_checkpoint(
    path: Path, config: TrainingConfig, model: Any, optimizer: torch.optim.Optimizer, step: int
) -> None:
    partial = path.with_suffix(".partial")
    state = {
        "recipe": _recipe(config),
        "parts": [config.small_steps, config.large_steps],
        "step": step,
        "model": model.state_dict(),
        "optimiser": optimizer.state_dict(),
    }
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, config: TrainingConfig, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint; the lengths of the parts may change as long as the first part is not over."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    parts, step = [config.small_steps, config.large_steps], int(state["step"])
    if state["recipe"] != _recipe(config) or (
        parts != state["parts"] and step > min(parts[0], state["parts"][0])
    ):
        raise ConfigError(
            f"{path} belongs to another training: {state['recipe']} with parts of {state['parts']} steps, now "
            f"{_recipe(config)} with {parts}; use its settings or another folder"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimiser"])
    _say(f"goes on from step {step} of {path}")
    return step


def _recipe(config: TrainingConfig) -> str:
    """Return what decides the weights, apart from the lengths of the parts, as text."""
    free = {"small_steps", "large_steps", "checkpoint_every", "check_every", "check_scenes", "workers"}
    return json.dumps({name: value for name, value in dataclasses.asdict(config).items() if name not in free})


def _report_check(model: Any, bank: WordBank, scenes: int) -> None:
    for host, iou in check_progress(model, bank, scenes).items():
        ranked = " ".join(f"{CLASS_NAMES[index]} {100 * iou[index]:.0f}" for index in np.argsort(iou))
        _say(f"check {host} mIoU {100 * np.nanmean(iou):.1f} on {scenes} scenes: {ranked}")


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
