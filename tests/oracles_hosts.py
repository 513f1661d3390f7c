"""The formulas of the further hosts, one token at a time; float64 numpy. Nothing is shared with the implementation."""

from collections.abc import Sequence

import numpy as np

from tests.oracles import Array, Grid, SlowTower, cosine_map, neighborhood, softmax, upsample


def like(scale: float, vectors: Array) -> Array:
    """Return softmax(s t t^T), row by row."""
    return np.stack([softmax(scale * vectors @ row) for row in vectors])


def crossed(scale: float, query: Array, key: Array) -> Array:
    """Return softmax(s q k^T), row by row."""
    return np.stack([softmax(scale * key @ row) for row in query])


def clipsurgery(tower: SlowTower, window: Array) -> Array:
    """Run CLIP Surgery's stream through the last six blocks (all, where there are fewer)."""
    states, _ = tower.hidden(window)
    start = max(tower.depth - 6, 0)
    stream = states[start].copy()
    for layer in range(start + 1, tower.depth + 1):
        _, _, value = tower.query_key_value(layer, states[layer - 1])
        stream = stream + tower.output(layer, [like(tower.scale, v) @ v for v in value])
    return tower.project(stream[1:])


def cliptrase(tower: SlowTower, window: Array) -> Array:
    """Run the last block with three self-self attentions."""
    states, _ = tower.hidden(window)
    tokens, last = states[tower.depth - 1], tower.depth
    attended = []
    for vectors in zip(*tower.query_key_value(last, tokens), strict=True):
        attended.append(sum(like(tower.scale, t) for t in vectors) @ vectors[2])
    result = tokens + tower.output(last, attended)
    return tower.project((result + tower.feed_forward(last, result))[1:])


def resclip(
    tower: SlowTower, window: Array, base: str, residual: Sequence[int], share: float, gain: float
) -> Array:
    """Mix the attention of the blocks `residual` into that of naclip, clearclip or sclip."""
    states, grid = tower.hidden(window)
    tokens, last = states[tower.depth - 1], tower.depth
    query, key, value = tower.query_key_value(last, tokens)
    lent = [tower.attention(layer, states[layer - 1]) for layer in residual]
    attended = []
    for head, (q, k, v) in enumerate(zip(query, key, value, strict=True)):
        if base == "naclip":
            own = np.stack([softmax(row) for row in tower.scale * k @ k.T + neighborhood(grid)])
        else:
            own = like(tower.scale, q) + (like(tower.scale, k) if base == "sclip" else 0)
        mean = sum(maps[head] for maps in lent) / len(lent)
        attended.append(gain * ((1 - share) * own + share * mean) @ v)
    result = tower.output(last, attended)
    if base == "sclip":
        result = tokens + result
        result = result + tower.feed_forward(last, result)
    return tower.project(result[1:])


def itaclip(tower: SlowTower, window: Array, middle: Sequence[int], own: bool) -> Array:
    """Average the last block's attention with that of the blocks `middle`."""
    states, _ = tower.hidden(window)
    tokens, last = states[tower.depth - 1], tower.depth

    def maps(layer: int) -> list[Array]:
        query, key, _ = tower.query_key_value(layer, states[layer - 1])
        if own:
            return [like(tower.scale, q) + like(tower.scale, k) for q, k in zip(query, key, strict=True)]
        return [crossed(tower.scale, q, k) for q, k in zip(query, key, strict=True)]

    _, _, value = tower.query_key_value(last, tokens)
    mine, lent = maps(last), [maps(layer) for layer in middle]
    attended = [
        (0.5 * mine[head] + 0.5 * sum(found[head] for found in lent) / len(lent)) @ v
        for head, v in enumerate(value)
    ]
    return tower.project((tokens + tower.output(last, attended))[1:])


def pearl(tower: SlowTower, window: Array, weight: float, iterations: int | None) -> Array:
    """Turn the keys by Newton-Schulz steps, or by the singular vectors where `iterations` is None."""
    states, _ = tower.hidden(window)
    tokens, last = states[tower.depth - 1], tower.depth
    attended = []
    for q, k, v in zip(*tower.query_key_value(last, tokens), strict=True):
        norms = np.array([0.0, *(np.sqrt((row**2).sum()) for row in q[1:])])
        shares = norms / (norms.sum() + 1e-6)
        mean_q, mean_k = shares @ q, shares @ k
        centered = k - mean_k
        covariance = np.sum([np.outer(a, b) for a, b in zip(centered, q - mean_q, strict=True)], 0)
        logits = q @ (k @ turn(covariance, iterations)).T + weight * centered @ centered.T
        attended.append(np.stack([softmax(tower.scale * row) for row in logits]) @ v)
    return tower.project(tower.output(last, attended)[1:])


def turn(covariance: Array, iterations: int | None) -> Array:
    """Return the orthogonal factor of a matrix, or what some steps towards it reach."""
    if iterations is None:
        left, _, right = np.linalg.svd(covariance)
        exact: Array = left @ right
        return exact
    gram = covariance.T @ covariance
    norm = np.sqrt((gram**2).sum())
    identity = np.eye(len(gram))
    y, z = gram / norm + 1e-6 * identity, identity
    for _ in range(iterations):
        step = 0.5 * (3 * identity - z @ y)
        y, z = y @ step, step @ z
    result: Array = covariance @ z / np.sqrt(norm)
    return result


def distracted(patches: Array, channels: Sequence[int], threshold: float) -> set[int]:
    """List the patches of which one of the channels holds more than `threshold` equal shares."""
    found = set()
    for index, patch in enumerate(patches):
        raised = [value - min(patch) for value in patch]
        if any(raised[channel] / sum(raised) > threshold / len(patch) for channel in channels):
            found.add(index)
    return found


def blend_distracted(
    tokens: Array, grid: Grid, channels: Sequence[int], threshold: float, share: float
) -> Array:
    """Mix each distracted patch with the mean of the nine places around it; places beyond the border are zero."""
    patches, result = tokens[1:], tokens.copy()
    for index in distracted(patches, channels, threshold):
        y, x = divmod(index, grid[1])
        total = np.zeros(tokens.shape[1])
        for ny in range(y - 1, y + 2):
            for nx in range(x - 1, x + 2):
                if 0 <= ny < grid[0] and 0 <= nx < grid[1]:
                    total += patches[ny * grid[1] + nx]
        result[index + 1] = (1 - share) * patches[index] + share * total / 9
    return result


def rfclip(tower: SlowTower, window: Array, channels: Sequence[int], threshold: float, share: float) -> Array:
    """Repair every block, propagate along the guide, decode with the mean keys-with-keys attention of all blocks."""
    tokens, grid = tower.embed(window)
    last = tower.depth
    outputs, keys = [], []
    for layer in range(1, last + 1):
        keys.append(tower.query_key_value(layer, tokens)[1])
        tokens = blend_distracted(tower.block(layer, tokens), grid, channels, threshold, share)
        outputs.append(tokens)
    guide = np.mean(outputs, 0)
    cosines = cosine_map(guide[1:])
    similarity = cosines * (cosines >= 0.4)
    decoded = []
    for stream in (outputs[-2], guide):
        propagated = np.concatenate([stream[:1], similarity @ stream[1:]])
        _, own, value = tower.query_key_value(last, propagated)
        attended = []
        for head, v in enumerate(value):
            every = [like(tower.scale, k[head]) for k in [*keys[:-1], own]]
            attended.append(np.mean(every, 0)[1:, 1:] @ v[1:])
        decoded.append(tower.output(last, attended))
    return tower.project(np.mean(decoded, 0))


def cliper_attention(by_head: Sequence[Array], rounds: int) -> list[Array]:
    """Balance each head's summed attention so many times, columns first; symmetrize, subtract column means, cut."""
    result = []
    for attention in by_head:
        balanced = attention.copy()
        for _ in range(rounds):
            balanced = balanced / balanced.sum(0)
            balanced = balanced / balanced.sum(1)[:, None]
        symmetric = (balanced + balanced.T) / 2
        raised = np.maximum(symmetric - symmetric.mean(0), 0)
        result.append(raised / raised.sum(1)[:, None])
    return result


def cliper(
    tower: SlowTower,
    embedded: Array,
    phrases: Array,
    background: Sequence[int],
    scale: float,
    threshold: float,
) -> Array:
    """Score phrases by CLIPer from embedded tokens (its positions are resampled bilinearly): [phrases, patches]."""
    states = [embedded]
    for layer in range(1, tower.depth):
        states.append(tower.block(layer, states[-1]))
    maps = [tower.attention(layer, states[layer - 1]) for layer in range(1, tower.depth)]
    summed = [np.sum(heads, 0) for heads in zip(*maps, strict=True)]
    mean = np.mean([row for index, row in enumerate(phrases) if index not in background], 0)
    texts = np.stack([*phrases, mean / np.linalg.norm(mean)])
    found = []
    for k in range(tower.depth):
        last = k == tower.depth - 1
        tokens = states[k] if last else tower.norm(states[k], f"{tower.name(k + 1)}.ln_1")
        attention = cliper_attention(summed, k + 1)
        _, _, value = tower.query_key_value(tower.depth, tokens)
        features = tower.project(
            tower.output(tower.depth, [m @ v for m, v in zip(attention, value, strict=True)])
        )[1:]
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        probability = softmax(scale * unit @ texts.T)[:, :-1].T
        if last:
            for row in probability:
                row[row < threshold * row.max()] = 0
            spread = probability @ np.mean(attention, 0)[1:, 1:]
        found.append(probability)
    result: Array = spread + np.mean(found, 0)
    return result


def density_clusters(points: Array, distance: float, neighbors: int) -> list[int]:
    """Number DBSCAN's clusters by walking from dense point to dense point; -1 is noise."""
    count = len(points)
    near = [
        [j for j in range(count) if i == j or np.sqrt(((points[i] - points[j]) ** 2).sum()) <= distance]
        for i in range(count)
    ]
    numbers, following = [-1] * count, 0
    for start in range(count):
        if numbers[start] != -1 or len(near[start]) < neighbors:
            continue
        numbers[start], pending = following, [start]
        while pending:
            point = pending.pop()
            if len(near[point]) < neighbors:
                continue
            for other in near[point]:
                if numbers[other] == -1:
                    numbers[other] = following
                    pending.append(other)
        following += 1
    return numbers


def median_filter(values: Array, side: int = 7) -> Array:
    """Take the median around each place, the borders mirrored with the edge repeated."""
    rows, columns = values.shape
    result = np.zeros_like(values)

    def inside(place: int, length: int) -> int:
        return -1 - place if place < 0 else 2 * length - 1 - place if place >= length else place

    for y in range(rows):
        for x in range(columns):
            around = [
                values[inside(y + dy, rows), inside(x + dx, columns)]
                for dy in range(-(side // 2), side // 2 + 1)
                for dx in range(-(side // 2), side // 2 + 1)
            ]
            result[y, x] = sorted(around)[len(around) // 2]
    return result


def cliptrase_correlation(tower: SlowTower, window: Array) -> Array:
    """Average the cosines of q, k and v of block L-1, less the class token's row, without what is negative."""
    states, _ = tower.hidden(window)
    vectors = tower.query_key_value(tower.depth - 1, states[tower.depth - 2])
    total = np.mean([cosine_map(head) for kind in vectors for head in kind], 0)
    result: Array = np.maximum(total[1:, 1:] - total[0, 1:], 0)
    return result


def cliptrase_votes(
    correlation: Array, features: Array, phrases: Array, grid: Grid, distance: float, neighbors: int
) -> list[int]:
    """Label patches by the majority of their cluster, the smallest phrase of equals."""
    labels: list[int] = (features @ phrases.T).argmax(1).tolist()
    numbers = density_clusters(correlation, distance, neighbors)
    if max(numbers) < 0:
        return labels
    maps = []
    for cluster in range(max(numbers) + 1):
        mean = np.mean(
            [row for row, number in zip(correlation, numbers, strict=True) if number == cluster], 0
        )
        fine = median_filter(upsample(mean.reshape(grid), 4 * grid[0], 4 * grid[1]))
        maps.append(upsample(fine, *grid).ravel())
    region = np.argmax(maps, 0)
    winners = {}
    for cluster in set(region.tolist()):
        inside = [label for label, place in zip(labels, region, strict=True) if place == cluster]
        winners[cluster] = min(set(inside), key=lambda label: (-inside.count(label), label))
    return [winners[place] for place in region.tolist()]


def label_attention(labels: Sequence[int], grid: Grid) -> Array:
    """Let patches of one label attend to each other, less where the beginning of the way meets another label."""
    count = grid[0] * grid[1]
    farthest = max(max(grid) - 1, 1)
    agreement = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            (y, x), (v, u) = divmod(i, grid[1]), divmod(j, grid[1])
            distance = max(abs(v - y), abs(u - x))
            visited = [
                labels[round(y + k / farthest * (v - y)) * grid[1] + round(x + k / farthest * (u - x))]
                for k in range(distance + 1)
            ]
            if labels[i] == labels[j]:
                clear = all(label == labels[i] for label in visited)
                agreement[i, j] = 1 if clear else np.exp(-distance / farthest)
    width = min(count, 31) - (1 - min(count, 31) % 2)
    kernel = [np.exp(-((k - width // 2) ** 2) / 50) for k in range(width)]
    blurred = np.zeros_like(agreement)
    for i in range(count):
        for j in range(count):
            for k, weight in enumerate(kernel):
                place = j + k - width // 2
                if 0 <= place < count:
                    blurred[i, j] += weight * agreement[i, place]
    result: Array = blurred / blurred.sum(1, keepdims=True)
    return result


def resclip_guided(
    tower: SlowTower,
    window: Array,
    base: str,
    residual: Sequence[int],
    shares: tuple[float, float],
    guidance: tuple[Array, float, float],
) -> Array:
    """Run ResCLIP's second pass: logits gain ((1 - weight) s t t^T + weight M / max M), plus the neighborhood.

    Args:
        shares: Share of the residual attention, and the factor on the mixture.
        guidance: M, its weight, and the gain.
    """
    states, grid = tower.hidden(window)
    tokens, last = states[tower.depth - 1], tower.depth
    query, key, value = tower.query_key_value(last, tokens)
    lent = [tower.attention(layer, states[layer - 1]) for layer in residual]
    attention, weight, gain = guidance
    guide = np.zeros((len(tokens), len(tokens)))
    guide[1:, 1:] = gain * weight * attention / attention.max()
    guide += neighborhood(grid) if base == "naclip" else 0
    attended = []
    for head, (q, k, v) in enumerate(zip(query, key, value, strict=True)):
        asking = {"naclip": [k], "clearclip": [q], "sclip": [q, k]}[base]
        own = np.sum(
            [[softmax(row) for row in gain * (1 - weight) * tower.scale * t @ t.T + guide] for t in asking], 0
        )
        mean = np.mean([maps[head] for maps in lent], 0)
        attended.append(shares[1] * ((1 - shares[0]) * own + shares[0] * mean) @ v)
    result = tower.output(last, attended)
    if base == "sclip":
        result = tokens + result
        result = result + tower.feed_forward(last, result)
    return tower.project(result[1:])
