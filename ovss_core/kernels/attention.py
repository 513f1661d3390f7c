"""Attention together with its mean over heads, without the maps of the heads."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.kernels import shared_memory, use_kernel
from ovss_core.kernels.averages import average

MOST_TOKENS = 1024
"""Beyond these some rows of a map do not fit into a processor's registers; flash attention's sums need no whole rows."""


def attend_with_mean(
    query: Float[Tensor, "windows heads tokens depth"],
    key: Float[Tensor, "windows heads tokens depth"],
    value: Float[Tensor, "windows heads tokens depth"],
    scale: float,
    total: Float[Tensor, "windows patches patches"] | None = None,
    whole: bool = True,
) -> tuple[Float[Tensor, "windows heads tokens depth"], Float[Tensor, "windows tokens tokens"] | None]:
    """Return softmax(scale q k^T) v, and the mean over heads of the softmax in float32.

    On a GPU the first is flash attention, and a kernel makes the second: it adds a tile of the map head after head in
    registers, so that what is written is one map a window and not one a head. From flash attention it takes the sums that
    the softmax divides by, so that it sees no row as a whole; where there are none (float32), it makes them itself.

    Args:
        query, key, value: Heads apart.
        scale: Factor on the products.
        total: What the mean's last rows and columns, those of the patches, are added to, in place.
        whole: Return the mean too; None stands in its place otherwise.
    """
    if use_kernel(query):
        found = _attend_on_device(query, key, value, scale, total, whole)
        if found is not None:
            return found
    # window by window on a CPU: the maps of all heads of one window stay in the cache and serve both results
    attended = torch.empty_like(value)
    mean = query.new_empty(query.shape[0], query.shape[2], query.shape[2], dtype=torch.float32)
    step = 1 if query.device.type == "cpu" else max(len(query), 1)
    for first in range(0, len(query), step):
        part = slice(first, first + step)
        weights = (query[part] @ (key[part] * scale).mT).softmax(-1, dtype=torch.float32)
        torch.mean(weights, 1, out=mean[part])
        attended[part] = weights.to(value.dtype) @ value[part]
    if total is not None:
        first = mean.shape[1] - total.shape[1]
        total += mean[:, first:, first:]
    return attended, mean if whole else None


def attend_by_terms(
    terms: tuple[Float[Tensor, "windows heads patches depth"], ...],
    scale: float,
    shared: Float[Tensor, "windows patches patches"],
    value: Float[Tensor, "windows heads patches depth"],
    second: Float[Tensor, "windows heads patches depth"] | None = None,
) -> Float[Tensor, "windows heads patches depth"]:
    """Average several attentions over the same values: softmax(s t t^T) for each term, and a map that all heads share.

    Args:
        terms: Vectors that attend to themselves, such as keys and queries.
        scale: Factor on the products, s.
        shared: The map.
        value: What is averaged; attention is linear in it, so the maps are never added up.
        second: Values that are read by the shared map alone, and added.
    """
    if use_kernel(value):
        return _attend_in_few_passes(terms, scale, shared, value, second)
    total = torch.zeros_like(value)
    for term in terms:
        total += F.scaled_dot_product_attention(term, term, value, scale=scale)
    total += shared[:, None].to(value.dtype) @ value
    total = total / (len(terms) + 1)
    return total if second is None else total + shared[:, None].to(value.dtype) @ second


def _attend_on_device(
    query: Tensor, key: Tensor, value: Tensor, scale: float, total: Tensor | None, whole: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Do as `attend_with_mean` by kernels; None where none of them can."""
    from ovss_core.kernels.attention_triton import launch_mean, launch_mean_with_sums

    if query.dtype in (torch.float16, torch.bfloat16) and query.shape[3] % 8 == 0:
        attended, log_sums = _attend_with_sums(query, key, value, scale)
        return attended, launch_mean(query, key, log_sums, scale, total, whole)
    if query.shape[2] <= MOST_TOKENS and _on_chip(key):
        attended = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return attended, launch_mean_with_sums(query, key, scale, total, whole)
    return None


def _attend_with_sums(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend, and return the logarithms of the sums that the softmax divides by [windows, heads, tokens or more].

    These are the calls behind scaled_dot_product_attention, which keeps the sums to itself; it would choose cuDNN's too,
    which took 0.7 of the other's time on an H200.
    """
    if _has_cudnn(query, key, value):
        attended, log_sums = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, scale=scale
        )[:2]
        return attended, log_sums.flatten(2)
    attended, log_sums = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[
        :2
    ]
    return attended, log_sums


def _has_cudnn(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if not torch.cuda.device_count() or torch.cuda.get_device_capability(query.device) < (9, 0):
        return False
    asked = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, False)
    return torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.can_use_cudnn_attention(asked)


def _attend_in_few_passes(
    terms: tuple[Tensor, ...], scale: float, shared: Tensor, value: Tensor, second: Tensor | None
) -> Tensor:
    """Do as `attend_by_terms`; the shared map multiplies all heads at once, and both values."""
    share = 1 / (len(terms) + 1)
    heads, depth = value.shape[1], value.shape[3]
    given = value * share if second is None else torch.add(second, value, alpha=share)
    columns = given.transpose(1, 2).flatten(2)
    shared = shared.to(value.dtype)
    if not terms:
        alone: Tensor = average(shared, columns).unflatten(2, (heads, depth)).transpose(1, 2)
        return alone
    attended = F.scaled_dot_product_attention(terms[0], terms[0], value, scale=scale)
    for term in terms[1:]:
        attended = attended + F.scaled_dot_product_attention(term, term, value, scale=scale)
    joined = average(shared, columns, attended.transpose(1, 2).flatten(2), share)
    apart: Tensor = joined.unflatten(2, (heads, depth)).transpose(1, 2)
    return apart


def _on_chip(key: Tensor) -> bool:
    """Say whether the keys of one head of one window fit into the memory that a program shares."""
    tokens, depth = (1 << (side - 1).bit_length() for side in key.shape[2:])
    return max(tokens, 16) * max(depth, 16) * key.element_size() < shared_memory(key.device)
