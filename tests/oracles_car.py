"""Loop-written restatement of CaR: gradients as differences, words one by one."""

from collections.abc import Sequence

import numpy as np
import torch

from ovss_core.images.resize import normalize
from ovss_core.vocabulary_filter.visual_prompts import prompt_picture
from tests.oracles import Array, Grid, SlowTower, softmax, upsample
from tests.oracles_freecp import box_mask, min_max, transfer_matrix

STEP = 1e-5


def probability(tower: SlowTower, tokens: Array, normed: Array, words: Array, scale: float) -> Array:
    """Run the last block on tokens whose ln_1 is `normed`, and compare the mean feature of the patches with the words."""
    name = f"{tower.name(tower.depth)}.attn"
    packed = normed @ tower.weights[f"{name}.in_proj_weight"].T + tower.weights[f"{name}.in_proj_bias"]
    query, key, value = (np.split(part, tower.heads, axis=1) for part in np.split(packed, 3, axis=1))
    attended = [
        np.stack([softmax(tower.scale * k @ row) @ v for row in q])
        for q, k, v in zip(query, key, value, strict=True)
    ]
    tokens = tokens + tower.output(tower.depth, attended)
    tokens = tokens + tower.feed_forward(tower.depth, tokens)
    feature = tower.project(tokens)[1:].mean(0)
    return softmax(scale * words @ (feature / np.linalg.norm(feature)))


def channel_weights(
    tower: SlowTower, tokens: Array, words: Array, wanted: int, scale: float
) -> tuple[Array, Array]:
    """Move one channel of all patches a little to either side; the slope is the sum of their derivatives."""
    normed = tower.norm(tokens, f"{tower.name(tower.depth)}.ln_1")
    patches = len(tokens) - 1
    found = np.zeros((wanted, tokens.shape[1]))
    for channel in range(tokens.shape[1]):
        sides = []
        for step in (STEP, -STEP):
            moved = normed.copy()
            moved[1:, channel] += step
            sides.append(probability(tower, tokens, moved, words, scale)[:wanted])
        found[:, channel] = (sides[0] - sides[1]) / (2 * STEP) / patches
    return found, normed[1:]


def word_maps(
    tower: SlowTower, window: Array, words: Array, background: Array, scale: float
) -> tuple[Array, Array, Grid]:
    """Return each word's map as it is, and cut to its boxes and spread."""
    states, grid = tower.hidden(window)
    late = range(max(1, tower.depth - 7), tower.depth + 1)
    attention = np.mean([np.mean(tower.attention(layer, states[layer - 1]), 0) for layer in late], 0)
    transfer = transfer_matrix(attention[1:, 1:])
    tokens = states[tower.depth - 1]
    weights, channels = channel_weights(tower, tokens, np.concatenate([words, background]), len(words), scale)
    plain, spread = [], []
    for row in weights:
        values = np.maximum([patch @ row for patch in channels], 0)
        low, high = values.min(), values.max()
        values = (values - low) / (high - low) if high > low else np.zeros_like(values)
        inside = box_mask(values.reshape(grid), 0.4).ravel()
        plain.append(values)
        spread.append(transfer @ (inside * values))
    return np.stack(plain), np.stack(spread), grid


def score(
    tower: SlowTower, pictures: Sequence[Array], prompts: Array, scale: float, gain: float, layer: int
) -> Array:
    """Judge each word by its own picture, by the class token behind block `layer`."""
    scores = []
    for word, picture in enumerate(pictures):
        states, _ = tower.hidden(picture)
        seen = tower.project(states[layer][:1])[0]
        shares = [softmax(scale * words @ (seen / np.linalg.norm(seen))) for words in prompts]
        scores.append(softmax(gain * np.mean(shares, 0))[word])
    return np.array(scores)


def rounds(
    tower: SlowTower,
    picture: np.ndarray,
    words: Array,
    background: Array,
    *,
    scale: float,
    gain: float,
    threshold: float,
    last_block: bool,
) -> tuple[list[int], list[tuple[list[int], Array]]]:
    """Let words leave a square picture of the tower's own size until none does.

    Args:
        words: [prompts, words, features]: maps of the first round, maps of later ones, and behind the first the judge's.
        background: The same of words that get no picture.
        last_block: Whether the judge's last block runs.
    """
    size = picture.shape[0], picture.shape[1]
    window = normalize(picture).double().numpy()
    layer = tower.depth if last_block else tower.depth - 1
    left = list(range(words.shape[1]))
    history: list[tuple[list[int], Array]] = []
    while True:
        prompt = min(len(history), 1)
        _, spread, grid = word_maps(tower, window, words[prompt, left], background[prompt], scale)
        masks = [upsample(min_max(values).reshape(grid), *size) > 0.5 for values in spread]
        shown = prompt_picture(picture, np.stack(masks), "circle_blur")
        pictures = [normalize(torch.from_numpy(own)).double().numpy() for own in shown]
        scores = score(tower, pictures, words[1:, left], scale, gain, layer)
        history.append((left, scores))
        stays = [word for word, value in zip(left, scores, strict=True) if value > threshold]
        stays = stays or [left[int(scores.argmax())]]
        if len(stays) == len(left):
            return stays, history
        left = stays
