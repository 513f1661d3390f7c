"""The formulas of the hosts that read a second tower, one patch at a time; float64 numpy, nothing shared with ours."""

from collections.abc import Sequence

import numpy as np

from tests.oracles import Array, Grid, SlowTower, softmax


def cosines(vectors: Array) -> Array:
    """Cosine of every two rows; a row of zeros has cosine 0 with everything."""
    lengths = [np.sqrt(sum(value * value for value in row)) for row in vectors]
    table = np.zeros((len(vectors), len(vectors)))
    for i, first in enumerate(vectors):
        for j, second in enumerate(vectors):
            if lengths[i] and lengths[j]:
                table[i, j] = sum(a * b for a, b in zip(first, second, strict=True)) / lengths[i] / lengths[j]
    return table


def bilinear(values: Array, grid: Grid, wanted: Grid) -> Array:
    """Resample rows that lie on a grid, pixel centers apart, clamped at the borders."""
    lattice = values.reshape(*grid, -1)

    def axis(table: Array, length: int) -> Array:
        result = np.zeros((length, *table.shape[1:]))
        for i in range(length):
            source = min(max((i + 0.5) * len(table) / length - 0.5, 0.0), len(table) - 1.0)
            low = int(np.floor(source))
            high = min(low + 1, len(table) - 1)
            result[i] = (1 - (source - low)) * table[low] + (source - low) * table[high]
        return result

    down = axis(lattice, wanted[0])
    across = np.stack([axis(row, wanted[1]) for row in down])
    return across.reshape(wanted[0] * wanted[1], -1)


def proxyclip_attention(vectors: Array, beta: float, gamma: float) -> Array:
    """Softmax over what is not below beta times the mean; a row without any entry attends to its own patch."""
    similarity = cosines(vectors)
    cut = beta * similarity.mean()
    rows = []
    for i, row in enumerate(similarity):
        kept = [j for j, value in enumerate(row) if value - cut >= 0 or j == i]
        weights = softmax(np.array([gamma * (row[j] - cut) for j in kept]))
        rows.append([dict(zip(kept, weights, strict=True)).get(j, 0.0) for j in range(len(row))])
    return np.array(rows)


def gathered(tower: SlowTower, tokens: Array, attention: Array, grids: Sequence[Grid]) -> Array:
    """Attend to the patches' values of the last block, brought to the attention's grid, and project them out."""
    layer = tower.depth
    _, _, value = tower.query_key_value(layer, tokens)
    heads = []
    for head in value:
        fine = bilinear(head[1:], grids[0], grids[1])
        heads.append(
            np.array(
                [sum(weight * row for weight, row in zip(line, fine, strict=True)) for line in attention]
            )
        )
    return tower.output(layer, heads)


def merged_regions(vectors: Array, regions: Sequence[int], distance: float) -> list[int]:
    """Join regions whose mean vectors are alike; 0 stays 0, a joined region is called by its smallest number."""
    names = sorted({number for number in regions if number})
    means = {}
    for name in names:
        rows = [
            row / np.linalg.norm(row) for row, number in zip(vectors, regions, strict=True) if number == name
        ]
        total = np.sum(rows, 0)
        means[name] = total / np.linalg.norm(total)
    table = {(a, b): float(means[a] @ means[b]) for a in names for b in names}
    largest = max(table.values(), default=0.0)
    owner = {name: name for name in names}
    changed = True
    while changed:
        changed = False
        for (a, b), value in table.items():
            if largest - value <= distance and owner[a] != owner[b]:
                owner[a] = owner[b] = min(owner[a], owner[b])
                changed = True
    return [owner.get(number, 0) for number in regions]


def corrclip_attention(vectors: Array, regions: Sequence[int], gain: float) -> Array:
    """Softmax of gain times the cosines, over what a patch may see; itself always."""
    similarity = cosines(vectors)
    mean = similarity.mean()
    rows = []
    for i, row in enumerate(similarity):
        seen = [
            j
            for j in range(len(row))
            if j == i or (row[j] > mean if 0 in (regions[i], regions[j]) else regions[i] == regions[j])
        ]
        weights = dict(zip(seen, softmax(np.array([gain * row[j] for j in seen])), strict=True))
        rows.append([weights.get(j, 0.0) for j in range(len(row))])
    return np.array(rows)


def region_token(tower: SlowTower, states: Sequence[Array], members: Sequence[int]) -> Array:
    """Carry a copy of the class token through all blocks; it sees the class token and some patches, not itself."""
    token = states[0][:1]
    for layer in range(1, tower.depth + 1):
        query, _, _ = tower.query_key_value(layer, token)
        _, key, value = tower.query_key_value(layer, states[layer - 1])
        rows = [0, *(member + 1 for member in members)]
        heads = [
            softmax(tower.scale * np.array([[q[0] @ k[row] for row in rows]])) @ v[rows]
            for q, k, v in zip(query, key, value, strict=True)
        ]
        token = token + tower.output(layer, heads)
        token = token + tower.feed_forward(layer, token)
    return token


def corrclip(
    tower: SlowTower, window: Array, vectors: Array, regions: Sequence[int], fine: Grid, semantic: float = 0.5
) -> Array:
    """All three branches, projected, not normalized."""
    states, grid = tower.hidden(window)
    merged = merged_regions(vectors, regions, 0.2)
    attention = corrclip_attention(vectors, merged, 4.0)
    middle = np.mean([states[layer] for layer in range(tower.depth // 2, tower.depth - 1)], 0)
    result = sum(
        tower.project(gathered(tower, tokens, attention, (grid, fine)))
        for tokens in (states[tower.depth - 1], middle)
    )
    coarse = [
        merged[(r * fine[0] // grid[0]) * fine[1] + c * fine[1] // grid[1]]
        for r in range(grid[0])
        for c in range(grid[1])
    ]
    tokens = {
        name: tower.project(region_token(tower, states, [i for i, own in enumerate(coarse) if own == name]))[
            0
        ]
        for name in set(coarse)
    }
    owner = [
        coarse[(r * grid[0] // fine[0]) * grid[1] + c * grid[1] // fine[1]]
        for r in range(fine[0])
        for c in range(fine[1])
    ]
    total: Array = np.asarray(result) + semantic * np.array([tokens[name] for name in owner])
    return total
