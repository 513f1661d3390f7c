"""The refiners' formulas, one pixel at a time; float64 numpy. Nothing here is shared with the implementation."""

from collections.abc import Sequence

import numpy as np

from tests.oracles import Array, softmax


def pamr_weights(picture: Array, dilations: Sequence[int]) -> Array:
    """Weigh the neighbors of every pixel of a picture [3, height, width]."""
    _, height, width = picture.shape
    result = np.zeros((8 * len(dilations), height, width))
    for y in range(height):
        for x in range(width):
            square, neighbors = [], []
            for dilation in dilations:
                for down in (-dilation, 0, dilation):
                    for across in (-dilation, 0, dilation):
                        there = picture[:, _inside(y + down, height), _inside(x + across, width)]
                        square.append(there)
                        if (down, across) != (0, 0):
                            neighbors.append(there)
            deviation = np.std(square, axis=0, ddof=1)
            step = 1e-8 + 0.1 * deviation
            result[:, y, x] = softmax(
                np.array([np.mean(-np.abs(picture[:, y, x] - there) / step) for there in neighbors])
            )
    return result


def pamr(maps: Array, picture: Array, dilations: Sequence[int], iterations: int) -> Array:
    """Let every pixel of every map take its neighbors' weighted mean, some times over."""
    weights = pamr_weights(picture, dilations)
    _, height, width = maps.shape
    for _ in range(iterations):
        after = np.zeros_like(maps)
        for y in range(height):
            for x in range(width):
                number = 0
                for dilation in dilations:
                    for down in (-dilation, 0, dilation):
                        for across in (-dilation, 0, dilation):
                            if (down, across) == (0, 0):
                                continue
                            there = maps[:, _inside(y + down, height), _inside(x + across, width)]
                            after[:, y, x] += weights[number, y, x] * there
                            number += 1
        maps = after
    return maps


def _inside(place: int, length: int) -> int:
    return min(max(place, 0), length - 1)


def laplacian_solution(scores: Array, gray: Array, vectors: Array) -> Array:
    """Solve PEARL's system exactly, as one dense matrix over the cells of a grid.

    Args:
        scores: [maps, rows, columns].
        gray: [rows, columns].
        vectors: Unit text vectors [maps, channels].
    """
    maps, rows, columns = scores.shape
    similarity = softmax(vectors @ vectors.T / 0.5) + 10 * np.eye(maps)
    similarity /= similarity.sum(1, keepdims=True)
    own = np.diag(similarity)
    share = softmax(scores.reshape(maps, -1).T)  # cells x maps
    confidence = np.array([max(p.max(), 0.05) ** 2 * (1 + (own * p * p).sum()) for p in share])
    system = np.diag(confidence)
    for step in ((1, 0), (0, 1)):
        pairs = [
            (y * columns + x, (y + step[0]) * columns + x + step[1])
            for y in range(rows - step[0])
            for x in range(columns - step[1])
        ]
        if not pairs:
            continue
        differences = [abs(gray.flat[i] - gray.flat[j]) for i, j in pairs]
        mean = max(float(np.mean(differences)), 1e-12)
        for (i, j), difference in zip(pairs, differences, strict=True):
            agreement = 1 + float((own * share[i] * share[j]).sum())
            weight = min(1.0, float(np.exp(-5 * difference / mean)) * agreement)
            system[i, i] += weight
            system[j, j] += weight
            system[i, j] -= weight
            system[j, i] -= weight
    right = confidence[:, None] * scores.reshape(maps, -1).T
    solved: Array = np.reshape(np.linalg.solve(system, right).T, scores.shape)
    return solved
