"""Between CPU and device: many small tables in one copy, and results that are awaited later.

A copy of a few numbers costs a GPU's queue as much as one of a megabyte, and a copy back makes the CPU wait for all
that is queued. So the tables of a batch travel as one block of pinned memory, and what comes back is asked for when the
next batch has been queued.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 16
_LARGE = 1 << 20
"""Bytes of a copy from which on to order two streams costs less than it takes."""
Key = TypeVar("Key")
Value = TypeVar("Value")
Awaited = TypeVar("Awaited", covariant=True)


class Pending(Protocol[Awaited]):
    """Work that a device has been given, and whose results come later."""

    def wait(self) -> Awaited:
        """Return the results as soon as they are there."""


def upload(
    tables: Mapping[str, np.ndarray | Sequence[np.ndarray]], device: torch.device | str
) -> dict[str, Tensor]:
    """Bring tables to a device in one copy; on the CPU only what may not be written to is copied, as tensors may be.

    Args:
        tables: By name; several arrays that differ in length alone become one.
        device: Where they go.
    """
    parts = {
        name: [np.ascontiguousarray(part) for part in ([table] if isinstance(table, np.ndarray) else table)]
        for name, table in tables.items()
    }
    if torch.device(device).type == "cpu":
        return {
            name: torch.from_numpy(
                np.require(table[0], None, "W") if len(table) == 1 else np.concatenate(table)
            )
            for name, table in parts.items()
        }
    sizes = [-(-sum(part.nbytes for part in table) // _ALIGNMENT) * _ALIGNMENT for table in parts.values()]
    block = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    flat = block.numpy()
    start = 0
    for size, table in zip(sizes, parts.values(), strict=True):
        place = start
        for part in table:
            flat[place : place + part.nbytes] = part.reshape(-1).view(np.uint8)
            place += part.nbytes
        start += size
    sent = _sent(block, torch.device(device))
    return {
        name: piece[: sum(part.nbytes for part in table)]
        .view(torch.from_numpy(np.empty(0, table[0].dtype)).dtype)
        .view(sum(len(part) for part in table), *table[0].shape[1:])
        for piece, (name, table) in zip(sent.split(sizes), parts.items(), strict=True)
    }


def _sent(block: Tensor, device: torch.device) -> Tensor:
    """Send a block of pinned memory; a large one while the device works on what is queued, and not behind it."""
    if len(block) < _LARGE or device.type != "cuda" or not torch.cuda.device_count():
        return block.to(device, non_blocking=True)
    working, sending = torch.cuda.current_stream(device), _side_stream(device, "uploads")
    with torch.cuda.stream(sending):
        sent = block.to(device, non_blocking=True)
    working.wait_stream(sending)
    sent.record_stream(working)
    return sent


@contextmanager
def _while_it_works(joined: Tensor) -> Iterator[None]:
    """Let a large copy back, once its source is there, keep nothing waiting that is queued behind."""
    if len(joined) < _LARGE or joined.device.type != "cuda" or not torch.cuda.device_count():
        yield
        return
    fetching = _side_stream(joined.device, "downloads")
    fetching.wait_stream(torch.cuda.current_stream(joined.device))
    joined.record_stream(fetching)
    with torch.cuda.stream(fetching):
        yield


class Download:
    """Tensors on their way to CPU memory in one copy.

    Args:
        tensors: On one device; the copy begins when this is made, behind all work that is queued.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._kinds = [(tensor.shape, tensor.dtype) for tensor in tensors]
        self._there = list(tensors) if tensors[0].device.type == "cpu" else None
        self._event: torch.cuda.Event | None = None
        if self._there is not None:
            return
        joined = torch.cat([_as_bytes(tensor) for tensor in tensors])
        self._landed = torch.empty(joined.shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        with _while_it_works(joined):
            self._landed.copy_(joined, non_blocking=True)
            if torch.cuda.is_available():
                self._event = torch.cuda.Event()
                self._event.record()

    def wait(self) -> list[np.ndarray]:
        """Return the tensors as arrays, in order."""
        views = self.views()
        return views if self._there is not None else [view.copy() for view in views]

    def views(self) -> list[np.ndarray]:
        """Do as `wait` without a copy more, for whoever soon lets the arrays go: they keep all the pinned memory."""
        if self._there is not None:
            return [tensor.numpy() for tensor in self._there]
        if self._event is not None:
            self._event.synchronize()
        landed, arrays, start = self._landed.numpy(), [], 0
        for shape, dtype in self._kinds:
            size = shape.numel() * dtype.itemsize
            kind = torch.empty(0, dtype=dtype).numpy().dtype
            arrays.append(landed[start : start + size].view(kind).reshape(tuple(shape)))
            start += size
        return arrays


def await_later(
    begun: Iterable[tuple[Key, Pending[Value]]], device: torch.device
) -> Iterator[tuple[Key, Value]]:
    """Await one after another; on a GPU each when the next one has been begun, so that it always has work.

    A CPU has done the work when it was begun: nothing is held back there. What was awaited is not referred to any more.

    Args:
        begun: What is begun when it is asked for, each with what it belongs to.
        device: Where the work is done.
    """
    ahead = 0 if device.type == "cpu" else 1
    waiting: deque[tuple[Key, Pending[Value]]] = deque()
    for entry in begun:
        waiting.append(entry)
        del entry
        if len(waiting) > ahead:
            yield _await(*waiting.popleft())
    while waiting:
        yield _await(*waiting.popleft())


def _await(key: Key, pending: Pending[Value]) -> tuple[Key, Value]:
    return key, pending.wait()


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Let what is asked of a GPU inside the block not queue behind the work that waits there already.

    What is read inside must have been awaited before, and what is made there be awaited before the block ends.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        yield
        return
    with torch.cuda.stream(_side_stream(device, "beside")):
        yield


@lru_cache(maxsize=16)
def _side_stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _as_bytes(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().flatten()
    if flat.stride(0) != 1:  # a single number may keep the stride of what it was cut from
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)
