"""Which patches may see each other where regions are given: merging regions that look alike, and the scope they leave.

From CorrCLIP (Zhang et al. 2025). Patches of no region, number 0, are the gap between them. Hosts without a second tower's
similarities keep the gap simple: its patches see everything, as they do without regions.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.clip.trace import EncoderTrace


def merge_regions(
    unit: Float[Tensor, "windows patches width"],
    ids: Int[Tensor, "windows patches"],
    count: int,
    distance: float,
) -> Int[Tensor, "windows patches"]:
    """Give regions that look alike one number, window by window.

    Regions are linked where the cosine C of their mean vectors has max(C) - C <= distance; what is connected becomes one
    region, called by its smallest number. The gap stays out.

    Args:
        unit: The second tower's vectors at unit length.
        ids: Region of each patch, 0 to `count`.
        count: Regions of the window that has the most.
        distance: How far below the window's largest cosine a linked pair may be.
    """
    if count < 2:
        return ids
    member = F.one_hot(ids, count + 1)[:, :, 1:].to(unit.dtype)
    there = member.sum(1) > 0
    means = F.normalize(member.mT @ unit, dim=-1)
    cosines = means @ means.mT
    pairs = there[:, :, None] & there[:, None, :]
    largest = cosines.masked_fill(~pairs, -torch.inf).amax((1, 2), keepdim=True)
    linked = pairs & (largest - cosines <= distance)
    linked.diagonal(dim1=1, dim2=2).fill_(True)
    reached = linked.to(unit.dtype)
    for _ in range(max(1, (count - 1).bit_length())):  # after k rounds everything within 2^k steps is reached
        reached = ((reached @ reached) > 0).to(unit.dtype)
    smallest = 1 + reached.argmax(2)
    names = torch.cat([smallest.new_zeros(len(ids), 1), smallest], 1)
    merged: Tensor = names.gather(1, ids)
    return merged


def patch_scope(
    trace: EncoderTrace, part: slice | None = None
) -> Bool[Tensor, "windows patches patches"] | None:
    """Say which patches see which: those of one region each other, those of no region all; None without regions.

    Args:
        part: Some of the windows; None for all.
    """
    if trace.regions is None:
        return None
    ids = trace.regions.ids if part is None else trace.regions.ids[part]
    return (ids[:, :, None] == ids[:, None, :]) | (ids == 0)[:, :, None]


def token_scope(trace: EncoderTrace) -> Bool[Tensor, "windows 1 tokens tokens"] | None:
    """Do as `patch_scope` for tokens, for all heads; the class token, if there is one, sees all and is seen by all."""
    patches, first = patch_scope(trace), trace.prefix
    return None if patches is None else F.pad(patches, (first, 0, first, 0), value=True)[:, None]


def keep_visible(
    attention: Float[Tensor, "*windows tokens tokens"],
    visible: Bool[Tensor, "*windows tokens tokens"] | Bool[Tensor, "windows 1 tokens tokens"] | None,
) -> Float[Tensor, "*windows tokens tokens"]:
    """Take what is not visible out of attention and let rows sum to 1 again, as a softmax without it would.

    A row of which nothing is left sees itself.
    """
    if visible is None:
        return attention
    kept = attention.masked_fill(~visible, 0)
    total = kept.sum(-1, keepdim=True)
    own = torch.eye(kept.shape[-1], dtype=kept.dtype, device=kept.device)
    return torch.where(total > 0, kept / total.clamp_min(torch.finfo(kept.dtype).tiny), own)


def visible_patches(
    similarity: Float[Tensor, "windows patches patches"], regions: Int[Tensor, "windows patches"]
) -> Bool[Tensor, "windows patches patches"]:
    """Say which patches see which: those of one region each other; the gap, and who looks into it, what is alike.

    A pair with a patch in the gap is seen where its cosine is above the mean of the window's whole map.
    """
    gap = regions == 0
    either = gap[:, :, None] | gap[:, None, :]
    same = regions[:, :, None] == regions[:, None, :]
    alike = similarity > similarity.mean((1, 2), keepdim=True)
    return torch.where(either, alike, same)


def nearest_on_grid(
    ids: Int[Tensor, "windows patches"], grid: tuple[int, int], wanted: tuple[int, int]
) -> Int[Tensor, "windows other"]:
    """Read a table of numbers at the upper left corners of another grid's patches."""
    rows, columns = (
        torch.arange(new, device=ids.device) * old // new for old, new in zip(grid, wanted, strict=True)
    )
    read: Tensor = ids.unflatten(1, grid)[:, rows][:, :, columns].flatten(1)
    return read
