"""Triton kernels for the few steps that PyTorch can only do in many passes over large tables.

Each function runs its kernel where the tensors are on a GPU and Triton is there, and the plain PyTorch form everywhere
else; both give the same numbers up to the order of sums. Tests run the kernels on a CPU in Triton's interpreter, and
compile them for a card that need not be there.
"""

from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor


@lru_cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def use_kernel(tensor: Tensor) -> bool:
    """Say whether a kernel can work on this tensor."""
    return tensor.device.type == "cuda" and _has_triton()


def shared_memory(device: torch.device) -> int:
    """Return the bytes that a program's tables may take on a GPU's chip; 0 where there is none."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)
