"""What a pretended GPU runs in the place of Triton kernels: the plain forms, each launch counted as one operation."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from ovss_core.class_purification import refinement
from ovss_core.class_purification.regions import box_union
from ovss_core.class_purification.winners import LabelEdits
from ovss_core.engine import finite, label_strips
from ovss_core.feature_purification import mitigation, outliers, similarity
from ovss_core.images import pixels
from ovss_core.kernels import attention, averages, class_sums
from ovss_core.kernels.evidence_triton import Active, Ranks
from ovss_core.kernels.products import Tile
from tests import evidence_forms, group_forms

Enter = Callable[[int, Callable[..., Any]], Callable[..., Any]]
"""Makes of a number of launches and a function of CPU tensors one of the pretended GPU's tensors."""


def stand_ins(enter: Enter) -> dict[str, SimpleNamespace]:
    """Return a module for each module of kernels, by its name."""
    modules: dict[str, dict[str, tuple[int, Callable[..., Any]]]] = {
        "attention_triton": {"launch_mean": (1, _mean), "launch_mean_with_sums": (1, _mean_with_sums)},
        "norms_triton": {"launch_add_norm": (1, _add_norm)},
        "products_triton": {"launch_quick_gelu_product": (1, _quick_gelu_product)},
        "guidance_triton": {
            "launch_outliers": (1, outliers.attention_outliers),
            "launch_repair": (1, _repair),
            "launch_weights": (2, _weights),
            "launch_guidance": (3, _guidance),
        },
        "averages_triton": {"launch_average": (1, _average)},
        "labels_triton": {"launch_purified": (1, _purified), "launch_probable": (1, _probable)},
        "class_sums_triton": {
            "launch_class_sums": (1, class_sums.add_class_sums),
            "launch_margin_sums": (1, class_sums.add_margin_sums),
        },
        "parts_triton": {"launch_union": (1, _union), "launch_parts": (1, _parts)},
        "pixels_triton": {
            "launch_windows": (1, pixels.windows_of),
            "launch_planes": (1, _planes),
            "launch_patches": (1, _patches),
            "launch_regions": (1, pixels.regions_of),
        },
        "affinity_triton": {"launch_balance": (2, _balance)},
        "evidence_triton": {
            "launch_statistics": (1, evidence_forms.statistics),
            "launch_peaks": (1, evidence_forms.peaks),
            "launch_active": (1, evidence_forms.active),
            "launch_maps": (1, evidence_forms.maps),
            "launch_refined": (2, evidence_forms.refined),
            "launch_null": (1, evidence_forms.null),
            "launch_decide": (1, evidence_forms.decide),
            "launch_take": (1, evidence_forms.take),
            "launch_needs": (1, evidence_forms.needs),
        },
        "groups_triton": {
            "launch_groups": (1, group_forms.groups),
            "launch_boxes": (3, group_forms.boxes),
            "launch_list": (1, group_forms.listed),
        },
        "finite_triton": {"launch_sound": (1, _sound)},
    }
    pretended = {
        f"ovss_core.kernels.{module}": SimpleNamespace(
            **{name: enter(launches, function) for name, (launches, function) in functions.items()}
        )
        for module, functions in modules.items()
    }
    vars(pretended["ovss_core.kernels.evidence_triton"]).update(Active=Active, Ranks=Ranks)
    return pretended


def _mean(
    query: Tensor, key: Tensor, _: Tensor, scale: float, total: Tensor | None, whole: bool
) -> Tensor | None:
    return _mean_with_sums(query, key, scale, total, whole)


def _mean_with_sums(
    query: Tensor, key: Tensor, scale: float, total: Tensor | None, whole: bool
) -> Tensor | None:
    return attention.attend_with_mean(query, key, query, scale, total, whole)[1]


def _add_norm(
    tokens: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float, total: Tensor | None
) -> tuple[Tensor, Tensor]:
    summed = tokens if added is None else tokens + added
    if total is not None:
        total += summed
    return summed, functional.layer_norm(summed, weight.shape, weight, bias, epsilon)


def _quick_gelu_product(tokens: Tensor, weight: Tensor, bias: Tensor, _: Tile) -> Tensor:
    linear = functional.linear(tokens, weight, bias)
    return linear * torch.sigmoid(1.702 * linear)


def _repair(
    tokens: Tensor, found: Tensor | None, grid: tuple[int, int], norms: bool
) -> tuple[Tensor, Tensor | None]:
    repaired = tokens if found is None else mitigation.repair_tokens(tokens, found, grid)
    return repaired, 1 / repaired.float().norm(dim=-1).clamp_min(1e-12) if norms else None


def _weights(patches: Tensor, _: float) -> Tensor:
    return _shares(similarity.Aggregation.of(patches), patches)


def _shares(aggregation: similarity.Aggregation, patches: Tensor) -> Tensor:
    return (aggregation.weights / aggregation.weights.sum(-1, keepdim=True)).to(patches.dtype)


def _guidance(
    patches: Tensor, found: Tensor, grid: tuple[int, int], cut: float, gain: float, cut_first: bool
) -> tuple[Tensor, Tensor]:
    aggregation, guided = similarity.guide_attention(patches, found, grid, not cut_first)
    return _shares(aggregation, patches), guided.to(patches.dtype)


def _average(weights: Tensor, patches: Tensor, added: Tensor | None, share: float) -> Tensor:
    return averages.average(weights, patches, added, share)


def _planes(
    table: Tensor,
    first: Tensor,
    width: Tensor,
    size: tuple[int, int],
    center: Tensor,
    spread: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    cut = pixels.windows_of(table, first, width, size).movedim(-1, -3)
    return ((cut.float() - center) / spread).to(dtype)


def _patches(planes: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    height, width = grid[0] * side, grid[1] * side
    cut = functional.unfold(planes[:, :, :height, :width].float(), side, stride=side)
    return functional.pad(cut.mT, (0, 0, 1, 0)).to(planes.dtype)


def _stitched(scores: Tensor, across: Tensor) -> Tensor:
    """Return [images, maps, height, width]."""
    return (scores @ across[:, None].mT).transpose(1, 2)


def _purified(
    scores: Tensor,
    across: Tensor,
    names: Tensor,
    _: Tensor,
    edits: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    top: int,
    background: int | None,
    found: Tensor,
    confidences: Tensor,
    seconds: Tensor | None,
) -> None:
    values = _stitched(scores, across).masked_fill((names < 0)[:, :, None, None], -1)
    best, place = values.max(1)
    best = best.clamp_min(0)
    values.scatter_(1, place[:, None], -1)
    if edits is not None:
        bounds = edits[0].numpy()
        everything = slice(top, top + scores.shape[1])
        label_strips.rename(place, best > 0, LabelEdits(bounds, *edits[:2], edits[3]), everything, values)
    second = values.amax(1).clamp_min(0)
    name = names.clamp_min(0).gather(1, place.flatten(1)).view_as(place)
    if background is not None:
        residual = 1 - best >= best
        second = torch.where(residual, best, torch.maximum(second, 1 - best))
        name, best = torch.where(residual, background, name), torch.where(residual, 1 - best, best)
    found.copy_(name)
    confidences.copy_(best)
    if seconds is not None:
        seconds.copy_(second)


def _probable(
    scores: Tensor,
    across: Tensor,
    classes: Tensor,
    allowed: Tensor | None,
    _: Tensor,
    top: int,
    floor: float,
    background: int | None,
    found: Tensor,
    confidences: Tensor,
    seconds: Tensor | None,
) -> None:
    logits = _stitched(scores, across)
    able = logits if allowed is None else logits.masked_fill(~allowed[:, :, None, None], -torch.inf)
    best, phrase = able.max(1)
    probability = (best - logits.logsumexp(1)).exp()
    name = classes[phrase]
    others = able.masked_fill(classes[:, None, None] == name[:, None], -torch.inf).amax(1)
    if seconds is not None:
        seconds.copy_(probability * (others - best).exp())
    if floor > 0 and background is not None:
        name = torch.where(probability < floor, background, name)
    found.copy_(name)
    confidences.copy_(probability)


def _sound(features: Tensor, attended: Tensor | None) -> Tensor:
    return finite.finite_rows(features) if attended is None else finite.sound_windows(features, attended)


def _balance(attended: Tensor, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    affinity = refinement.balance(attended, rounds)
    rows, columns = affinity.row_scale[:, :, None], affinity.column_scale[:, :, None]
    scaled = rows * attended * columns.mT
    return affinity.row_scale, affinity.column_scale, (scaled + scaled.mT) / 2


def _union(regions: Tensor, limits: tuple[int, int]) -> Tensor:
    union = box_union(regions)
    assert (max(regions.shape[1] - 1, 1), max(regions.shape[2] - 1, 1)) == limits
    return union


def _parts(regions: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    maps, height, width = regions.shape
    corners = torch.zeros(maps, height * width, 4, dtype=torch.int32)
    labels = torch.zeros(maps, height * width, dtype=torch.int32)
    for index, region in enumerate(regions.numpy()):
        parts, _ = ndimage.label(region, np.ones((3, 3)) if diagonal else None)
        for part, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            places = torch.from_numpy(np.flatnonzero(parts == part))
            labels[index, places] = places[-1].int() + 1
            bounds = columns.start, rows.start, columns.stop, rows.stop
            corners[index, places[-1]] = torch.tensor(bounds, dtype=torch.int32)
    return corners, labels
