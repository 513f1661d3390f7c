"""FreeCP's formulas one window, one class and one patch at a time, as slow and plain as they can be written.

float64 numpy; nothing here is shared with the implementation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]


def transfer_matrix(attention: Array, rounds: int = 3) -> Array:
    """Form T T densely: normalize columns, then rows, symmetrize, square."""
    matrix = attention.astype(np.float64).copy()
    size = len(matrix)
    for _ in range(rounds):
        for column in range(size):
            total = matrix[:, column].sum()
            if total > 0:
                matrix[:, column] /= total
        for row in range(size):
            total = matrix[row].sum()
            if total > 0:
                matrix[row] /= total
    matrix = (matrix + matrix.T) / 2
    return matrix @ matrix


def flood(mask: Mask, diagonal: bool) -> list[list[tuple[int, int]]]:
    """List the connected parts of a mask, each as its pixels."""
    height, width = mask.shape
    left = {(y, x) for y in range(height) for x in range(width) if mask[y, x]}
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if diagonal or abs(dy) + abs(dx) == 1]
    parts = []
    while left:
        pending = [left.pop()]
        part = []
        while pending:
            y, x = pending.pop()
            part.append((y, x))
            for dy, dx in steps:
                if (y + dy, x + dx) in left:
                    left.remove((y + dy, x + dx))
                    pending.append((y + dy, x + dx))
        parts.append(part)
    return parts


def region(scores: Array, share: float, peak: int | None = None) -> Mask:
    """Threshold a map on its 8-bit levels, strictly, at int(share * peak)."""
    levels = np.array([[int(255 * value) for value in row] for row in scores])
    return levels > int(share * (levels.max() if peak is None else peak))


def boxes(mask: Mask, exclude_last: bool = True, holes: bool = False) -> set[Box]:
    """Bound the 8-connected parts, and the rims of the holes if asked."""
    height, width = mask.shape
    bounds = [_bound(part) for part in flood(mask, diagonal=True)]
    if holes:
        padded = np.ones((height + 2, width + 2), dtype=bool)
        padded[1:-1, 1:-1] = ~mask
        for part in flood(padded, diagonal=False):
            if (0, 0) not in part:
                y0, x0, y1, x1 = _bound(part)
                bounds.append((y0 - 2, x0 - 2, y1, x1))
    found = set()
    for y0, x0, y1, x1 in bounds:
        if exclude_last:
            x1, y1 = min(x1, max(width - 1, 1)), min(y1, max(height - 1, 1))
        found.add((x0, y0, x1, y1))
    return found


def _bound(part: Sequence[tuple[int, int]]) -> tuple[int, int, int, int]:
    rows, columns = [y for y, _ in part], [x for _, x in part]
    return min(rows), min(columns), max(rows) + 1, max(columns) + 1


def box_mask(scores: Array, share: float, peak: int | None = None) -> Mask:
    """Paint the union of the boxes of a map."""
    mask = np.zeros(scores.shape, dtype=bool)
    for x0, y0, x1, y1 in boxes(region(scores, share, peak)):
        mask[y0:y1, x0:x1] = True
    return mask


@dataclass
class Purified:
    """One unit's purification: P, q [windows, classes, N] and decisions, over foreground classes."""

    probability: Array
    refined: Array
    scores: Array
    kept: list[int]
    groups: list[tuple[int, ...]]


def purify_unit(
    features: Array,
    attention: Array,
    phrases: Array,
    phrase_class: Sequence[int],
    classes: int,
    grid: tuple[int, int],
    *,
    scale: float,
    redundancy: float,
    ambiguity: float,
    box_threshold: float = 0.4,
    consistency: str | None = None,
) -> Purified:
    """Purify the windows of one unit: one window (released, paper) or all windows of an image.

    Args:
        features: [windows, N, channels], unit rows.
        attention: [windows, N, N].
        phrases: [phrases, channels], unit rows.
        phrase_class: Class of each phrase.
        classes: Number of classes.
        grid: Patch rows and columns.
        scale: Factor on the cosines.
        redundancy: Keep scores strictly above.
        ambiguity: Join maps at a soft IoU of at least.
        box_threshold: Share of the peak.
        consistency: Score by the paper's soft IoU, of P as it is or normalized, instead of the released ratio.
    """
    windows, patches, _ = features.shape
    phrase_probability = np.zeros((windows, len(phrases), patches))
    for b in range(windows):
        for n in range(patches):
            logits = scale * phrases @ features[b, n]
            exponent = np.exp(logits - logits.max())
            phrase_probability[b, :, n] = exponent / exponent.sum()
    low, high = phrase_probability.min(), phrase_probability.max()
    probability = np.zeros((windows, classes, patches))
    for b in range(windows):
        for q, k in enumerate(phrase_class):
            probability[b, k] = np.maximum(probability[b, k], phrase_probability[b, q])
    refined = np.zeros_like(probability)
    scores = np.zeros(classes)
    transfers = [transfer_matrix(attention[b]) for b in range(windows)]
    for k in range(classes):
        span = high - low
        normalized = (probability[:, k] - low) / span if span > 0 else np.ones((windows, patches))
        peak = int(255 * normalized.max())
        for b in range(windows):
            mask = box_mask(normalized[b].reshape(grid), box_threshold, peak).ravel()
            refined[b, k] = transfers[b] @ (mask * normalized[b])
        refined[:, k] = min_max(refined[:, k])
        raw = probability[:, k]
        if consistency:
            before = raw if consistency == "probability" else min_max(raw)
            scores[k] = soft_iou(before, refined[:, k]) if refined[:, k].any() else 0.0
        else:
            scores[k] = (raw * refined[:, k]).sum() / (raw.sum() + refined[:, k].sum() + 1e-8)
    kept = [k for k in range(classes) if scores[k] > redundancy]
    return Purified(probability, refined, scores, kept, ambiguous_groups(refined, kept, ambiguity))


def min_max(values: Array) -> Array:
    """Normalize to [0, 1] as the released code does."""
    low, high = values.min(), values.max()
    result: Array = (values - low) / (high - low + 1e-8)
    return result


def soft_iou(first: Array, second: Array) -> float:
    """Divide the sum of minima by the sum of maxima."""
    smallest = largest = 0.0
    for a, b in zip(first.ravel(), second.ravel(), strict=True):
        smallest += min(a, b)
        largest += max(a, b)
    return smallest / largest if largest > 0 else 0.0


def ambiguous_groups(refined: Array, kept: Sequence[int], threshold: float) -> list[tuple[int, ...]]:
    """Join kept classes by depth-first search; list groups of two or more."""
    neighbors: dict[int, set[int]] = {k: set() for k in kept}
    for i in kept:
        for j in kept:
            if i < j and soft_iou(refined[:, i], refined[:, j]) >= threshold:
                neighbors[i].add(j)
                neighbors[j].add(i)
    groups, seen = [], set()
    for start in kept:
        if start in seen:
            continue
        pending, members = [start], set()
        while pending:
            node = pending.pop()
            if node not in members:
                members.add(node)
                pending.extend(neighbors[node])
        seen |= members
        if len(members) > 1:
            groups.append(tuple(sorted(members)))
    return groups


def group_boxes(refined: Array, group: Sequence[int], grid: tuple[int, int], share: float = 0.4) -> set[Box]:
    """Bound the regions of a group's mean map in one window, holes included, in patches."""
    mean = np.mean([refined[k] for k in group], axis=0)
    found = boxes(region(mean.reshape(grid), share), holes=True)
    return found or {(0, 0, 0, 0)}


def lattice_mean(
    maps: Array,
    origins: Sequence[tuple[int, int]],
    window: tuple[int, int],
    image: tuple[int, int],
    patch: int,
) -> Array:
    """Average window maps [windows, rows, columns] on an image's patch lattice, pixel by pixel."""
    height, width = -(-image[0] // patch), -(-image[1] // patch)
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for values, (top, left) in zip(maps, origins, strict=True):
        rows, columns = values.shape
        for y in range(window[0]):
            for x in range(window[1]):
                cell = (top + y) // patch, (left + x) // patch
                total[cell] += values[y * rows // window[0], x * columns // window[1]]
                count[cell] += 1
    result: Array = total / np.maximum(count, 1)
    return result
