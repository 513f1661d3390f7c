"""Levers on speed, each beside the same work without it: which pay on this machine and which do not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pipelines.benchmark.timing import median_ratio, take_turns
from pipelines.benchmark.workload import Workload

Run = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """One lever, ready to be measured.

    Attributes:
        name: What is done.
        in_use: Whether the engine or the job does it by default on this machine.
        without: The work without it.
        build: Returns the same work with it; may raise where the lever cannot be had.
    """

    name: str
    in_use: bool
    without: Run
    build: Callable[[], Run]


@dataclass(frozen=True)
class Lever:
    """One lever, measured.

    Attributes:
        name: What is done.
        in_use: Whether the engine or the job does it by default on this machine.
        over: Its time over that of the same work without it; below 1 it pays. None: it cannot be had here.
        reason: Why it cannot be had.
    """

    name: str
    in_use: bool
    over: float | None
    reason: str = ""


def measure_levers(workload: Workload, comparisons: Iterator[Comparison]) -> list[Lever]:
    """Measure levers one after the other; each comparison is dropped before the next is made."""
    with torch.inference_mode():
        return [_measure(comparison, workload.config.repeats) for comparison in comparisons]


def _measure(comparison: Comparison, repeats: int) -> Lever:
    name, in_use = comparison.name, comparison.in_use
    try:
        seconds = take_turns({"without": comparison.without, "with": comparison.build()}, repeats)
    except (RuntimeError, OSError) as error:  # no compiler, or no kernel for the format
        return Lever(name, in_use, None, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Lever(name, in_use, median_ratio(seconds["with"], seconds["without"]))
