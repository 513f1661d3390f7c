"""Triton kernels for the few steps that PyTorch can only do in many passes over large tables.

Each function runs its kernel where the tensors are on a GPU and Triton is there, and the plain PyTorch form everywhere
else; both give the same numbers up to the order of sums. Tests run the kernels on a CPU in Triton's interpreter, and
compile them for a card that need not be there. Set ``OVSS_KERNELS=plain`` in the environment to do without them;
`ovss_core.engine.trial` does without them where they do not work.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor


@lru_cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


_plain = os.environ.get("OVSS_KERNELS") == "plain"


def use_kernel(tensor: Tensor) -> bool:
    """Say whether a kernel can work on this tensor, and is to."""
    return not _plain and tensor.device.type == "cuda" and _has_triton()


def give_up() -> None:
    """Use the plain forms from now on, in this process."""
    global _plain
    _plain = True


@contextmanager
def plain_forms() -> Iterator[None]:
    """Use the plain forms inside the block."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def shared_memory(device: torch.device) -> int:
    """Return the bytes that a program's tables may take on a GPU's chip; 0 where there is none."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)
