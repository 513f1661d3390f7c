"""Synthetic windows for the tests: features near class embeddings in rectangles, attention to look-alikes."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ovss_core.class_purification.class_maps import WindowBatch
from ovss_core.class_purification.placement import Placement, Units
from ovss_core.class_purification.purifier import Purified
from ovss_core.class_purification.winners import AmbiguousRegions
from ovss_core.vocabulary import Vocabulary

PATCH = 16


@dataclass(frozen=True)
class Texts:
    """The text side, as purification reads it."""

    vocabulary: Vocabulary
    phrase_embeddings: Tensor
    phrase_class: np.ndarray
    null_embeddings: Tensor
    logit_scale: float = 100.0


@dataclass(frozen=True)
class Scene:
    """A batch, its texts, the classes that are in each image, and where its windows lie."""

    batch: WindowBatch
    texts: Texts
    present: list[set[int]]
    origins: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FoundGroup:
    """Classes that claim one region, the window that decides it (None: the image), and its boxes in pixels."""

    classes: tuple[int, ...]
    window: int | None
    boxes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Found:
    """What was decided about one image: scores [classes], kept classes, maps [kept, windows, rows, columns]."""

    scores: Tensor
    kept: Tensor
    maps: Tensor
    groups: tuple[FoundGroup, ...]


def regions_of(purified: Purified, images: Units) -> AmbiguousRegions:
    """List the boxes of all ambiguous groups, as the engine does when they have come from the device."""
    groups = purified.groups
    used, boxes, members = (part.numpy() for part in (groups.used, groups.boxes, groups.members))
    return AmbiguousRegions.of_tables(used, boxes, members, groups.by_window, images.counts)


def by_image(purified: Purified, batch: WindowBatch) -> list[Found]:
    """Take the result of a batch apart."""
    regions = regions_of(purified, batch.placement.images)
    found, start = [], 0
    for image, count in enumerate(batch.placement.images.counts):
        used = purified.kept.used[image]
        maps = (
            purified.kept.maps[start : start + count, used].transpose(0, 1).unflatten(2, batch.placement.grid)
        )
        groups = tuple(
            FoundGroup(
                tuple(index for index in regions.members[group].tolist() if index >= 0),
                None if regions.group_window[group] < 0 else int(regions.group_window[group]),
                tuple(map(tuple, regions.corners[regions.group == group].tolist())),
            )
            for group in np.flatnonzero(regions.group_image == image)
        )
        found.append(Found(purified.scores[image], purified.kept.classes[image, used], maps, groups))
        start += count
    return found


def unit(vectors: Tensor) -> Tensor:
    """L2-normalize rows."""
    return functional.normalize(vectors, dim=-1)


def make_texts(
    lines: list[str], generator: torch.Generator, channels: int = 64, nulls: int = 40, spread: float = 0.7
) -> Texts:
    """Draw phrase embeddings around a common direction, as CLIP's text embeddings lie."""
    vocabulary = Vocabulary.from_names(lines)
    total = len(vocabulary.phrases) + nulls
    center = unit(torch.randn(channels, generator=generator))
    rows = unit(center + spread * unit(torch.randn(total, channels, generator=generator)))
    return Texts(vocabulary, rows[: total - nulls], vocabulary.phrase_class, rows[total - nulls :])


def make_scene(
    texts: Texts,
    images: int = 2,
    windows: int = 1,
    grid: tuple[int, int] = (7, 7),
    objects: int = 3,
    noise: float = 0.6,
    seed: int = 0,
) -> Scene:
    """Paint rectangles of a few classes into each window; patches attend to patches of like features.

    Windows of an image lie side by side, half a window apart.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = sorted(set(texts.phrase_class.tolist()))
    features, present = [], []
    for _ in range(images):
        chosen = [classes[int(k)] for k in torch.randperm(len(classes), generator=generator)[:objects]]
        present.append(set(chosen))
        for _ in range(windows):
            features.append(_window(texts, chosen, grid, noise, generator))
    stacked = torch.stack(features)
    logits = 8 * stacked @ stacked.mT + torch.randn(
        stacked.shape[0], *[grid[0] * grid[1]] * 2, generator=generator
    )
    side = (grid[0] * PATCH, grid[1] * PATCH)
    step = side[1] // 2
    origins = tuple((0, step * w) for _ in range(images) for w in range(windows))
    batch = WindowBatch(
        features=stacked,
        attention=logits.softmax(-1) * 0.9,
        placement=Placement.of(
            window_counts=(windows,) * images,
            origins=origins,
            image_sizes=((side[0], side[1] + step * (windows - 1)),) * images,
            grid=grid,
            patch_size=PATCH,
            window_size=side,
        ),
    )
    return Scene(batch, texts, present, origins)


def _window(
    texts: Texts, chosen: list[int], grid: tuple[int, int], noise: float, generator: torch.Generator
) -> Tensor:
    rows, columns = grid
    channels = texts.phrase_embeddings.shape[1]
    clutter = texts.phrase_embeddings.mean(0).expand(rows, columns, channels).clone()
    for k in chosen:
        phrase = int(np.flatnonzero(texts.phrase_class == k)[0])
        y, x = (int(torch.randint(0, max(1, side - 2), (), generator=generator)) for side in grid)
        height, width = (
            int(torch.randint(2, max(3, side // 2 + 1), (), generator=generator)) for side in grid
        )
        clutter[y : y + height, x : x + width] = texts.phrase_embeddings[phrase]
    scattered = unit(torch.randn(rows, columns, channels, generator=generator))
    return unit(clutter + noise * scattered).flatten(0, 1)


def placed_anew(
    batch: WindowBatch, counts: tuple[int, ...], sizes: tuple[tuple[int, int], ...]
) -> WindowBatch:
    """Deal the same windows out to other images, every one 7 pixels further down and right."""
    place = batch.placement
    origins = tuple((7 * number, 7 * number) for count in counts for number in range(count))
    again = Placement.of(counts, origins, sizes, place.grid, place.patch_size, place.window_size)
    return replace(batch, placement=again)


def single(batch: WindowBatch, image: int, origins: tuple[tuple[int, int], ...]) -> WindowBatch:
    """Cut one image out of a batch whose windows lie at `origins`."""
    place = batch.placement
    start = sum(place.images.counts[:image])
    wanted = slice(start, start + place.images.counts[image])
    alone = Placement.of(
        place.images.counts[image : image + 1],
        origins[wanted],
        place.image_sizes[image : image + 1],
        place.grid,
        place.patch_size,
        place.window_size,
    )
    return WindowBatch(batch.features[wanted], batch.attention[wanted], alone)
