"""The text tower's first lessons, without pictures: one word in two wordings is near, different words are apart.

From random weights all phrases lie within a few degrees of each other, and a short training would spend itself on
drawing them apart through the image tower. This part is cheap: a step reads a few hundred short phrases.
"""

import random
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.demonstration.objective import WordBank, encode_text
from pipelines.demonstration.words import CLASS_NAMES, DISTRACTORS, phrases_of

_SCALE = 20.0
_DISTRACTORS_A_STEP = 48


def warm_up_words(model: Any, bank: WordBank, steps: int, learning_rate: float, seed: int) -> float:
    """Train the text tower on pairs of wordings and return the last loss.

    Args:
        model: The open_clip model; only its text tower changes.
        bank: Turns phrases into token ids.
        steps: Number of steps; the rate falls to zero over them.
        learning_rate: The rate to begin with.
        seed: Of the words and wordings drawn.
    """
    parameters = [p for name, p in model.named_parameters() if not name.startswith(("visual.", "logit_"))]
    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    _center(model, bank, random.Random(f"ovss words {seed}"))
    value = 0.0
    for step in range(steps):
        rng = random.Random(f"ovss words {seed} {step}")
        distractors = rng.sample(DISTRACTORS, _DISTRACTORS_A_STEP)
        first, second = (encode_text(model, bank.tokens(_wordings(distractors, rng))) for _ in range(2))
        logits = _SCALE * first @ second.T
        target = torch.arange(len(logits))
        loss = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        value = float(loss.detach())
    return value


@torch.no_grad()
def center_norm(norm: torch.nn.LayerNorm, outputs: Tensor) -> None:
    """Set a fresh layer norm's weight and bias so that `outputs` [.., width] get mean 0 and deviation 1."""
    flat = outputs.flatten(0, -2)
    spread = flat.std(0).clamp(min=1e-2)
    norm.weight.copy_(1 / spread)
    norm.bias.copy_(-flat.mean(0) / spread)


def _center(model: Any, bank: WordBank, rng: random.Random) -> None:
    seen: list[Tensor] = []
    texts = _wordings(rng.sample(DISTRACTORS, _DISTRACTORS_A_STEP), rng)
    tokens = bank.tokens(texts)
    last = tokens.argmax(-1)
    hook = model.ln_final.register_forward_hook(
        lambda _, __, out: seen.append(out[torch.arange(len(out)), last])
    )
    with torch.no_grad():
        encode_text(model, tokens)
    hook.remove()
    center_norm(model.ln_final, seen[0])


def _wordings(distractors: list[str], rng: random.Random) -> list[str]:
    words = [rng.choice(phrases_of(name)) if rng.random() < 0.5 else name for name in CLASS_NAMES]
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES
    return [rng.choice(templates)(word) if rng.random() < 0.9 else word for word in (*words, *distractors)]
