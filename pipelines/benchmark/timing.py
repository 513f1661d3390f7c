"""Fair timing on a noisy machine: candidates take turns, and ratios are formed turn by turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def take_turns(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Run every candidate once to warm up, then `repeats` times in turn.

    Returns:
        Seconds of each candidate, turn by turn.
    """
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            seconds[name].append(seconds_of(run))
    return seconds


def seconds_of(run: Callable[[], object]) -> float:
    """Time one call, waiting for the accelerator where there is one."""
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def median_ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the ratios of paired times."""
    return statistics.median(first / second for first, second in zip(above, below, strict=True))


def peak_megabytes(run: Callable[[], object]) -> float:
    """Run once and return the peak memory: of the accelerator where there is one, else resident memory.

    Resident memory needs Linux; elsewhere the result is nan.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):
        _CLEAR_REFS.write_text("5")
        run()
        return resident_megabytes("VmHWM")
    return float("nan")


def resident_megabytes(field: str = "VmRSS") -> float:
    """Return this process's resident memory (VmRSS) or its peak (VmHWM); nan where there is no /proc."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return float("nan")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
