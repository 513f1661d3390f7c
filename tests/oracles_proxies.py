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
