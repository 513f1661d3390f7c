"""Pixels and confidence of each class, and how sure labels are, summed over label maps."""

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from ovss_core.kernels import use_kernel


def add_class_sums(
    label: Integer[Tensor, "images height width"],
    confidence: Float[Tensor, "images height width"],
    inside: Bool[Tensor, "images height width"] | None,
    pixels: Int[Tensor, "images classes"],
    sums: Float[Tensor, "images classes"],
) -> None:
    """Add the pixels of each class and the sum of their confidence to `pixels` (int64) and `sums` (float64).

    Neighboring pixels have one class, so that threads which add pixel by pixel wait for each other; the kernel first
    adds up what a block of pixels has of each class that it holds.

    Args:
        label: Class of each pixel.
        confidence: Of the same pixels.
        inside: Which pixels count; None takes all.
        pixels, sums: Contiguous; written into.
    """
    if use_kernel(label):
        from ovss_core.kernels.class_sums_triton import launch_class_sums

        launch_class_sums(label, confidence, inside, pixels, sums)
        return
    images, classes = pixels.shape
    column = label.long() + classes * torch.arange(images, device=label.device)[:, None, None]
    # what is outside counts nothing, which needs no count of what is inside
    ones = torch.ones_like(column) if inside is None else inside.long()
    confidence = confidence.double() if inside is None else torch.where(inside, confidence.double(), 0)
    pixels.view(-1).index_add_(0, column.flatten(), ones.flatten())
    sums.view(-1).index_add_(0, column.flatten(), confidence.flatten())


def add_margin_sums(
    confidence: Float[Tensor, "images height width"],
    second: Float[Tensor, "images height width"],
    inside: Bool[Tensor, "images height width"] | None,
    least: float,
    scores: Float[Tensor, " images"],
    margins: Float[Tensor, " images"],
    sure: Int[Tensor, " images"],
) -> None:
    """Add up each image's confidence, how far it is ahead of the second best score, and the pixels where that is enough.

    Args:
        confidence: Of each pixel's class.
        second: The best score of another class.
        inside: Which pixels count; None takes all.
        least: A margin from which on a pixel is sure.
        scores, margins, sure: float64, float64 and int64; written into.
    """
    if use_kernel(confidence):
        from ovss_core.kernels.class_sums_triton import launch_margin_sums

        launch_margin_sums(confidence, second, inside, least, scores, margins, sure)
        return
    margin = (confidence - second).clamp_(0, 1)
    is_sure = margin >= least
    if inside is not None:
        confidence, margin = torch.where(inside, confidence, 0), torch.where(inside, margin, 0)
        is_sure &= inside
    scores += confidence.sum((1, 2), dtype=torch.float64)
    margins += margin.sum((1, 2), dtype=torch.float64)
    sure += is_sure.sum((1, 2))
