"""The formulas of the encoder, the hosts, SFP, stitching and labels, one token at a time; float64 numpy.

Nothing here is shared with the implementation. FreeCP's formulas are in `oracles_freecp.py`.
"""

from collections.abc import Sequence
from math import erf

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Grid = tuple[int, int]


# Positions and the plain transformer


def cubic_weight(distance: float, a: float = -0.75) -> float:
    """Weight a neighbor by Keys' bicubic kernel."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def resample_axis(values: Array, wanted: int) -> Array:
    """Resample the first axis: scale (n + 0.1) / base, source (i + 0.5) / scale - 0.5, clamped borders."""
    base = len(values)
    scale = (wanted + 0.1) / base
    result = np.zeros((wanted, *values.shape[1:]))
    for i in range(wanted):
        source = (i + 0.5) / scale - 0.5
        first = int(np.floor(source))
        for neighbor in range(first - 1, first + 3):
            clamped = min(max(neighbor, 0), base - 1)
            result[i] += cubic_weight(source - neighbor) * values[clamped]
    return result


def resample_table(table: Array, base: Grid, grid: Grid) -> Array:
    """Resample a positional table, class token first, to another grid."""
    if base == grid:
        return table
    lattice = table[1:].reshape(*base, -1)
    down = resample_axis(lattice, grid[0])
    across = np.stack([resample_axis(row, grid[1]) for row in down])
    return np.concatenate([table[:1], across.reshape(grid[0] * grid[1], -1)])


def softmax(logits: Array) -> Array:
    """Normalize exponentials along the last axis."""
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    result: Array = exponent / exponent.sum(-1, keepdims=True)
    return result


def gelu(values: Array, quick: bool) -> Array:
    """Apply QuickGELU or the exact GELU."""
    if quick:
        result: Array = values / (1 + np.exp(-1.702 * values))
        return result
    exact: Array = values * 0.5 * (1 + np.vectorize(erf)(values / np.sqrt(2)))
    return exact


class SlowTower:
    """An open_clip image tower with learned positions and a class token, by its weights' names.

    Args:
        weights: State dict as float64 arrays.
        heads: Attention heads.
        patch: Side of a patch.
        base: Base grid.
        quick: Whether the activation is QuickGELU.
    """

    def __init__(self, weights: dict[str, Array], heads: int, patch: int, base: Grid, quick: bool) -> None:
        self.weights, self.heads, self.patch, self.base, self.quick = weights, heads, patch, base, quick
        self.depth = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("transformer."))

    def norm(self, tokens: Array, name: str) -> Array:
        """Apply a layer norm, token by token."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        rows = [(t - t.mean()) / np.sqrt(t.var() + 1e-5) * weight + bias for t in tokens]
        return np.stack(rows)

    def embed(self, window: Array) -> tuple[Array, Grid]:
        """Cut patches of [3, height, width], embed each, add positions."""
        side, kernel = self.patch, self.weights["conv1.weight"]
        rows, columns = window.shape[1] // side, window.shape[2] // side
        tokens = [self.weights["class_embedding"]]
        for r in range(rows):
            for c in range(columns):
                cut = window[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
                tokens.append(np.array([(filter_ * cut).sum() for filter_ in kernel]))
        table = resample_table(self.weights["positional_embedding"], self.base, (rows, columns))
        return self.norm(np.stack(tokens) + table, "ln_pre"), (rows, columns)

    def name(self, layer: int) -> str:
        """Prefix of block `layer`, from 1."""
        return f"transformer.resblocks.{layer - 1}"

    def query_key_value(self, layer: int, tokens: Array) -> tuple[list[Array], list[Array], list[Array]]:
        """List q, k and v of ln_1(tokens) by head."""
        weight = self.weights[f"{self.name(layer)}.attn.in_proj_weight"]
        bias = self.weights[f"{self.name(layer)}.attn.in_proj_bias"]
        packed = self.norm(tokens, f"{self.name(layer)}.ln_1") @ weight.T + bias
        q, k, v = np.split(packed, 3, axis=1)
        return tuple(np.split(part, self.heads, axis=1) for part in (q, k, v))  # type: ignore[return-value]

    @property
    def scale(self) -> float:
        """1 / sqrt(head dimension)."""
        width = len(self.weights["class_embedding"])
        return float((width // self.heads) ** -0.5)

    def output(self, layer: int, attended: Sequence[Array]) -> Array:
        """Join the heads and project."""
        name = f"{self.name(layer)}.attn.out_proj"
        joined: Array = np.concatenate(attended, axis=1)
        result: Array = joined @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return result

    def feed_forward(self, layer: int, tokens: Array) -> Array:
        """Apply mlp(ln_2(tokens))."""
        name = f"{self.name(layer)}.mlp"
        normed = self.norm(tokens, f"{self.name(layer)}.ln_2")
        hidden = gelu(
            normed @ self.weights[f"{name}.c_fc.weight"].T + self.weights[f"{name}.c_fc.bias"], self.quick
        )
        result: Array = hidden @ self.weights[f"{name}.c_proj.weight"].T + self.weights[f"{name}.c_proj.bias"]
        return result

    def attention(self, layer: int, tokens: Array) -> list[Array]:
        """List softmax(s q k^T) by head, row by row."""
        query, key, _ = self.query_key_value(layer, tokens)
        return [
            np.stack([softmax(self.scale * k @ row) for row in q]) for q, k in zip(query, key, strict=True)
        ]

    def block(self, layer: int, tokens: Array) -> Array:
        """Run a block as trained."""
        _, _, value = self.query_key_value(layer, tokens)
        maps = self.attention(layer, tokens)
        tokens = tokens + self.output(layer, [m @ v for m, v in zip(maps, value, strict=True)])
        return tokens + self.feed_forward(layer, tokens)

    def hidden(self, window: Array) -> tuple[list[Array], Grid]:
        """List h_0 .. h_L."""
        tokens, grid = self.embed(window)
        states = [tokens]
        for layer in range(1, self.depth + 1):
            states.append(self.block(layer, states[-1]))
        return states, grid

    def project(self, tokens: Array) -> Array:
        """Apply ln_post and the projection."""
        result: Array = self.norm(tokens, "ln_post") @ self.weights["proj"]
        return result

    def mean_attention(self, window: Array) -> Array:
        """Average the head-mean patch-patch attention of blocks 1 .. L-1."""
        states, _ = self.hidden(window)
        maps = [np.mean(self.attention(layer, states[layer - 1]), 0) for layer in range(1, self.depth)]
        result: Array = np.mean(maps, 0)[1:, 1:]
        return result


# Hosts


def last_block_head(tower: SlowTower, window: Array, host: str, purified: bool) -> Array:
    """Compute clip, maskclip, sclip, clearclip or naclip, not normalized, patches only."""
    states, grid = tower.hidden(window)
    tokens, last = states[tower.depth - 1], tower.depth
    query, key, value = tower.query_key_value(last, tokens)
    attended = []
    for q, k, v in zip(query, key, value, strict=True):
        weights = _weights(host, tower.scale, q, k, grid)
        attended.append(np.stack([sum(w * row for w, row in zip(line, v, strict=True)) for line in weights]))
    result = tower.output(last, attended)
    if host in ("clip", "sclip"):
        result = result if purified else tokens + result
        result = result + tower.feed_forward(last, result)
    elif host == "maskclip" and purified:
        result = result + tower.feed_forward(last, result)
    return tower.project(result)[1:]


def _weights(host: str, scale: float, q: Array, k: Array, grid: Grid) -> Array:
    if host == "clip":
        return softmax(scale * q @ k.T)
    if host == "maskclip":
        return np.eye(len(q))
    if host == "sclip":
        return softmax(scale * q @ q.T) + softmax(scale * k @ k.T)
    if host == "clearclip":
        return softmax(scale * q @ q.T)
    return softmax(scale * k @ k.T + neighborhood(grid))


def neighborhood(grid: Grid, deviation: float = 5.0) -> Array:
    """Tabulate NACLIP's Gaussian of the patch distance, 0 for the class token."""
    count = grid[0] * grid[1]
    bias = np.zeros((count + 1, count + 1))
    for i in range(count):
        for j in range(count):
            dy, dx = i // grid[1] - j // grid[1], i % grid[1] - j % grid[1]
            bias[i + 1, j + 1] = np.exp(-(dy**2 + dx**2) / (2 * deviation**2))
    return bias


def gem(tower: SlowTower, embedded: Array) -> Array:
    """Run GEM from the embedded tokens (its positions are resampled with antialiasing)."""
    states = [embedded]
    for layer in range(1, tower.depth):
        states.append(tower.block(layer, states[-1]))
    stream = states[tower.depth // 2]
    for layer in range(tower.depth // 2 + 1, tower.depth + 1):
        tokens = states[layer - 1]
        normed = tower.norm(tokens, f"{tower.name(layer)}.ln_1")
        temperature = np.mean([np.linalg.norm(row) for row in normed]) * tower.scale
        query, key, value = tower.query_key_value(layer, tokens)
        attended = []
        for q, k, v in zip(query, key, value, strict=True):
            total = np.zeros_like(v)
            for vectors in (v, k, q):
                once = unit_rows(
                    softmax(temperature * unit_rows(vectors) @ unit_rows(vectors).T) @ unit_rows(vectors)
                )
                total += softmax(temperature * once @ once.T) @ v
            attended.append(total / 3)
        stream = stream + tower.output(layer, attended)
    return tower.project(stream[1:])


def unit_rows(values: Array) -> Array:
    """L2-normalize rows."""
    result: Array = values / np.linalg.norm(values, axis=1, keepdims=True)
    return result


# SFP


def attention_outliers(
    class_row: Array, diagonal: Array, factor: float, limit: int | None = None
) -> set[int]:
    """List the patches whose self attention is below factor times the class attention, strongest first."""
    found = [i for i in range(len(class_row)) if diagonal[i] < factor * class_row[i]]
    return set(sorted(found, key=lambda i: -class_row[i])[:limit])


def repair(patches: Array, outliers: set[int], grid: Grid) -> Array:
    """Replace outliers by the mean of their valid 8-neighbors, where there is one."""
    rows, columns = grid
    repaired = patches.copy()
    for index in outliers:
        y, x = divmod(index, columns)
        valid = [
            patches[ny * columns + nx]
            for ny in range(max(y - 1, 0), min(y + 2, rows))
            for nx in range(max(x - 1, 0), min(x + 2, columns))
            if (ny, nx) != (y, x) and ny * columns + nx not in outliers
        ]
        if valid:
            repaired[index] = np.mean(valid, 0)
    return repaired


def cosine_map(patches: Array) -> Array:
    """Tabulate the cosine of every two patches."""
    unit = unit_rows(patches)
    return np.array([[float(a @ b) for b in unit] for a in unit])


def smooth(similarity: Array, patches: Array) -> Array:
    """Average by the rows of a similarity map (denominator + 1e-6)."""
    return np.stack([(row[:, None] * patches).sum(0) / (row.sum() + 1e-6) for row in similarity])


def similarity_attention(similarity: Array) -> Array:
    """Take the softmax over the non-negative entries of 3 (S - mean(S))."""
    centered = 3 * (similarity - similarity.mean())
    result = np.zeros_like(similarity)
    for i, row in enumerate(centered):
        total = sum(np.exp(value) for value in row if value >= 0)
        for j, value in enumerate(row):
            result[i, j] = np.exp(value) / total if value >= 0 else 0.0
    return result


def lof_scores(patches: Array, neighbors: int = 30) -> Array:
    """Score local outliers as SC-CLIP's code does: ratio of squared reaches."""
    count = min(neighbors, len(patches) - 1)
    squared = np.array([[((a - b) ** 2).sum() for b in patches] for a in patches])
    order = [sorted(range(len(patches)), key=lambda j, row=row: row[j]) for row in squared]  # type: ignore[misc]
    reach = [squared[i, order[i][count]] for i in range(len(patches))]
    return np.array(
        [np.mean([reach[i] / reach[j] for j in order[i][1 : count + 1]]) for i in range(len(patches))]
    )


def lof_outliers(patches: Array, share: float = 0.05) -> set[int]:
    """List the patches above the (1 - share) quantile of the scores."""
    scores = lof_scores(patches)
    return set(np.flatnonzero(scores > np.quantile(scores, 1 - share)).tolist())


def guided_head(
    tower: SlowTower, window: Array, host: str, layers: tuple[int, int], summed: Sequence[int]
) -> Array:
    """Compute the released sfp, or scclip, with the given semantic and spatial layers."""
    states, grid = tower.hidden(window)
    last, (semantic, spatial) = tower.depth, layers
    before = states[last - 1]
    if host == "sfp":
        mean = np.mean(tower.attention(last - 1, states[last - 2]), 0)
        outliers = attention_outliers(mean[0, 1:], np.diag(mean)[1:], 1.5, 10)
    else:
        outliers = lof_outliers(before[1:])
    full = cosine_map(repair(states[semantic][1:], outliers, grid))
    near = cosine_map(states[spatial][1:])
    guide, near = full * (full >= 0.4), near * (near >= 0.4)
    shared = similarity_attention(full if host == "scclip" else guide)
    patches = smooth(guide, repair(before[1:], outliers, grid))
    terms = ("q", "k") if host == "sfp" else ("k",)
    first = smooth(near, _guided(tower, patches, before[0], terms, shared))
    total = np.sum([states[layer] for layer in summed], 0)
    second = smooth(near, _guided(tower, total[1:], total[0], () if host == "sfp" else ("k",), shared))
    return tower.project(first + second)


def _guided(
    tower: SlowTower, patches: Array, class_token: Array, terms: Sequence[str], shared: Array
) -> Array:
    query, key, value = tower.query_key_value(tower.depth, patches)
    attended = []
    for q, k, v in zip(query, key, value, strict=True):
        maps = [shared]
        maps += [softmax(tower.scale * t @ t.T) for name, t in (("q", q), ("k", k)) if name in terms]
        attended.append(np.mean(maps, 0) @ v)
    return tower.output(tower.depth, attended) + 0.3 * class_token


def paper_sfp(
    tower: SlowTower,
    window: Array,
    *,
    mitigation: bool = True,
    enhancement: bool = True,
    integration: bool = True,
    factor: float = 1.0,
    limit: int | None = None,
    strength: float = 0.5,
    start: int = 1,
    rounds: int = 1,
) -> Array:
    """Compute SFP by the paper's equations, projections and residual on, HAI before the projection."""
    tokens, grid = tower.embed(window)
    total = np.zeros((len(tokens) - 1, len(tokens) - 1))
    for layer in range(1, tower.depth):
        mean = np.mean(tower.attention(layer, tokens), 0)
        outliers = attention_outliers(mean[0, 1:], np.diag(mean)[1:], factor, limit)
        tokens = tower.block(layer, tokens)
        if mitigation:
            tokens = np.concatenate([tokens[:1], repair(tokens[1:], outliers, grid)])
        filtered = mean[1:, 1:].copy()
        filtered[:, sorted(outliers)] = 0
        total += filtered if layer >= start else 0
    if enhancement:
        features = enhance(tower, tokens[1:], strength, project=True, residual=True)
    else:
        query, _, value = tower.query_key_value(tower.depth, tokens)
        maps = [softmax(tower.scale * q @ q.T) for q in query]
        features = tower.output(tower.depth, [m @ v for m, v in zip(maps, value, strict=True)])[1:]
    return tower.project(balanced(total, rounds) @ features if integration else features)


def enhance(tower: SlowTower, patches: Array, strength: float, *, project: bool, residual: bool) -> Array:
    """Compute SAE on the last block."""
    query, key, value = tower.query_key_value(tower.depth, patches)
    maps = [softmax(strength * tower.scale * (q @ q.T + k @ k.T)) for q, k in zip(query, key, strict=True)]
    if project:
        attended = tower.output(tower.depth, [m @ v for m, v in zip(maps, value, strict=True)])
    else:
        attended = np.mean([m @ patches for m in maps], 0)
    return patches + tower.feed_forward(tower.depth, attended) if residual else attended


def balanced(matrix: Array, rounds: int) -> Array:
    """Divide rows, then columns, by their sums, leaving empty ones alone."""
    result = matrix.copy()
    for _ in range(rounds):
        for i in range(len(result)):
            result[i] /= result[i].sum() or 1.0
        for j in range(len(result)):
            result[:, j] /= result[:, j].sum() or 1.0
    return result


# Stitching and labels


def upsample(values: Array, height: int, width: int) -> Array:
    """Resample a map bilinearly (align_corners=False), pixel by pixel."""
    rows, columns = values.shape
    result = np.zeros((height, width))
    for y in range(height):
        sy = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
        y0 = int(sy)
        y1, wy = min(y0 + 1, rows - 1), sy - y0
        for x in range(width):
            sx = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            x0 = int(sx)
            x1, wx = min(x0 + 1, columns - 1), sx - x0
            top = (1 - wx) * values[y0, x0] + wx * values[y0, x1]
            bottom = (1 - wx) * values[y1, x0] + wx * values[y1, x1]
            result[y, x] = (1 - wy) * top + wy * bottom
    return result


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """List the windows of one axis by walking along it; the last one shifts inside."""
    starts = [0]
    while starts[-1] + size < length:
        starts.append(min(starts[-1] + stride, length - size))
    return starts


def stitch(
    maps: Array, origins: Sequence[tuple[int, int]], window: Grid, resized: Grid, original: Grid
) -> Array:
    """Upsample each window's map [windows, rows, columns], sum, divide by the count, resize."""
    total, count = np.zeros(resized), np.zeros(resized)
    for values, (top, left) in zip(maps, origins, strict=True):
        total[top : top + window[0], left : left + window[1]] += upsample(values, *window)
        count[top : top + window[0], left : left + window[1]] += 1
    return upsample(total / count, *original)


def label_pixels(
    cosines: Array,
    phrase_class: Sequence[int],
    classes: int,
    *,
    scale: float,
    background: int | None = None,
    min_probability: float = 0.0,
    min_area: float | None = None,
) -> tuple[NDArray[np.int64], Array]:
    """Label stitched cosines [phrases, height, width] by SFP's rule; return labels and probabilities."""
    _, height, width = cosines.shape
    scores = np.zeros((classes, height, width))
    for y in range(height):
        for x in range(width):
            probability = softmax(scale * cosines[:, y, x])
            for q, k in enumerate(phrase_class):
                scores[k, y, x] = max(scores[k, y, x], probability[q])
    if min_area is not None:
        first = scores.argmax(0)
        foreground = sum(1 for value in first.ravel() if value != background)
        small = [
            k
            for k in range(classes)
            if k != background and (first == k).sum() / max(foreground, 1) <= min_area
        ]
        scores[small if len(small) < classes else []] = 0  # where none would remain, none is dropped
    labels, best = scores.argmax(0), scores.max(0)
    if background is not None:
        labels[best < min_probability] = background
    return labels, best
