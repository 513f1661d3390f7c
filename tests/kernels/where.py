"""Runs launches of kernels where they can run: on a GPU, and without one in Triton's interpreter on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MARKS = [pytest.mark.gpu] if torch.cuda.is_available() else []


def launched(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Let a launch take and give tensors of the CPU, wherever it runs."""

    def run(*arguments: Any) -> Any:
        return _to("cpu", launch(*_to(DEVICE, arguments)))

    return run


def _to(device: str, values: Any) -> Any:
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)
