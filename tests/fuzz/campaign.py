"""Runs cases in a process of its own, so that one that crashes, hangs or swells is found, named and left behind."""

import multiprocessing
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from tests.fuzz.mutations import mutate

CASE_S = 20.0
"""A case that takes longer counts as a hang."""
GROWTH_BYTES = 1 << 30
"""A case may let the process grow by so much; its limits (pixels, bytes) are set far below that."""
_CASES_A_PROCESS = 2000

Check = Callable[[bytes], None]
"""Takes a file and returns, or raises an error of `ovss_core.errors`: any other exception is a finding."""


@dataclass(frozen=True)
class Target:
    """One reader of untrusted files.

    Attributes:
        seeds: Sound files, by name.
        check: Reads one file; what it raises beside our own errors is a finding.
    """

    name: str
    seeds: Mapping[str, bytes]
    check: Check


@dataclass(frozen=True)
class Finding:
    """A case that ended as none may.

    Attributes:
        target, seed_file, seed: `python -m tests.fuzz --case TARGET SEED_FILE SEED` repeats it.
        what: The exception, or how the process ended.
    """

    target: str
    seed_file: str
    seed: int
    what: str


@dataclass
class Report:
    """Cases by target, and what was found."""

    cases: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


def build_case(target: Target, seed_file: str, seed: int) -> bytes:
    """Return the damaged file of one case."""
    others = sorted(target.seeds)
    other = others[random.Random(seed).randrange(len(others))]
    return mutate(target.seeds[seed_file], target.seeds[other], seed)


def fuzz(load: Callable[[], Sequence[Target]], seconds: float, seed: int) -> Report:
    """Run cases until the time is up; targets and seed files take turns.

    Args:
        load: Builds the targets; called in this process and in each child.
        seconds: How long.
        seed: The first case's seed; cases count up from it.
    """
    names = [(target.name, name) for target in load() for name in sorted(target.seeds)]
    report = Report()
    end, number = time.monotonic() + seconds, seed
    context = multiprocessing.get_context("spawn")
    while time.monotonic() < end:
        ours, theirs = context.Pipe()
        child = context.Process(target=_serve, args=(load, theirs), daemon=True)
        child.start()
        theirs.close()
        for _ in range(_CASES_A_PROCESS):
            if time.monotonic() >= end:
                break
            target, seed_file = names[number % len(names)]
            what = _ask(child, ours, (target, seed_file, number))
            report.cases[target] += 1
            if what:
                report.findings.append(Finding(target, seed_file, number, what))
                print(report.findings[-1], flush=True)
            number += 1
            if not child.is_alive():
                break
        child.kill()
        child.join()
    return report


def _ask(
    child: multiprocessing.process.BaseProcess, pipe: Connection, case: tuple[str, str, int]
) -> str | None:
    """Hand one case to the child; return what was wrong, None if nothing."""
    try:
        pipe.send(case)
        if pipe.poll(CASE_S + (60.0 if not getattr(child, "warm", False) else 0.0)):
            answer: str | None = pipe.recv()
            child.warm = True  # type: ignore[attr-defined]
            return answer
        child.kill()
        child.join()
        return f"no answer within {CASE_S:g} s"  # noqa: TRY300 (the timeout is an outcome, not an error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        child.join(5)
        return f"the process ended with {child.exitcode}"


def _serve(load: Callable[[], Sequence[Target]], pipe: Connection) -> None:
    targets = {target.name: target for target in load()}
    while True:
        name, seed_file, seed = pipe.recv()
        pipe.send(run_case(targets[name], build_case(targets[name], seed_file, seed)))


def run_case(target: Target, data: bytes) -> str | None:
    """Read one file; return what was wrong, None if nothing."""
    from ovss_core.errors import OvssError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        target.check(data)
    except OvssError as error:
        if len(str(error)) > 2000 or "\n" in str(error).strip():
            return f"an error of more than one short line: {type(error).__name__}: {str(error)[:300]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return f"the process grew by {grown:,} bytes" if grown > GROWTH_BYTES else None
