"""Runs cases in a process of its own, so that one that crashes, hangs or swells is found, named and left behind."""

import logging
import multiprocessing
import os
import random
import signal
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from ovss_core.errors import OvssError
from tests.fuzz.mutations import mutate

CASE_S = 20.0
"""A case that takes longer counts as a hang."""
GROWTH_BYTES = 1 << 28
"""A case may let the process grow by so much; the readers' limits (pixels, bytes) are set far below that."""
_LOADING_S = 300.0
_LONGEST_ERROR = 2000

Load = Callable[[], "Sequence[Target]"]


def as_it_is(data: bytes) -> bytes:
    """Leave a damaged file as it is."""
    return data


@dataclass(frozen=True)
class Target:
    """One reader of untrusted files.

    Attributes:
        seeds: Sound files, by name.
        check: Reads a file, given the name of the sound one and the bytes. It returns, or raises an error of
            `ovss_core.errors`; any other exception is a finding.
        mend: Puts checksums right in a damaged file, so that the damage gets past them; done to every other case.
    """

    name: str
    seeds: Mapping[str, bytes]
    check: Callable[[str, bytes], None]
    mend: Callable[[bytes], bytes] = as_it_is


@dataclass(frozen=True)
class Case:
    """One damaged file: ``python -m tests.fuzz --case TARGET SEED_FILE SEED`` reads it again."""

    target: str
    seed_file: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        refused: The reader said in an error of ours that it cannot read the file.
        fault: What was wrong; None if nothing.
    """

    refused: bool = False
    fault: str | None = None


@dataclass
class Report:
    """What a campaign did, by target, and what it found."""

    cases: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[Case, str]] = field(default_factory=list)

    def add(self, case: Case, outcome: Outcome) -> None:
        """Count a case; a finding is printed at once."""
        self.cases[case.target] += 1
        self.refused[case.target] += outcome.refused
        if outcome.fault:
            self.findings.append((case, outcome.fault))
            print(f"FOUND {case.target} {case.seed_file} {case.seed}: {outcome.fault}", flush=True)


def build_case(target: Target, seed_file: str, seed: int) -> bytes:
    """Return the damaged file of a case."""
    chance = random.Random(seed)
    other = target.seeds[chance.choice(sorted(target.seeds))]
    damaged = mutate(target.seeds[seed_file], other, seed)
    return target.mend(damaged) if chance.random() < 0.5 else damaged


def run_case(target: Target, seed_file: str, data: bytes) -> Outcome:
    """Read a damaged file in this process."""
    _forget_peak()
    before = _memory("VmRSS")
    outcome = _read(target, seed_file, data)
    grown = _memory("VmHWM") - before
    if not outcome.fault and grown > GROWTH_BYTES:
        return Outcome(fault=f"the process grew by {grown:,} bytes")
    return outcome


def _read(target: Target, seed_file: str, data: bytes) -> Outcome:
    try:
        target.check(seed_file, data)
    except KeyboardInterrupt:
        raise
    except OvssError as error:
        text = str(error)
        if len(text) > _LONGEST_ERROR or "\n" in text.strip():
            return Outcome(fault=f"no short line: {type(error).__name__}: {text[:300]!r}")
        return Outcome(refused=True)
    except BaseException as error:  # panics of Rust libraries are no `Exception`
        return Outcome(fault=f"{type(error).__name__}: {str(error)[:300]}")
    return Outcome()


def fuzz(
    load: Load,
    seconds: float,
    seed: int = 0,
    only: str | None = None,
    cases: int | None = None,
    case_s: float = CASE_S,
) -> Report:
    """Run cases until the time is up, or so many have run.

    Args:
        load: Builds the targets; called in the process that reads, so it must be importable.
        seed: The first case's seed; cases count up from it.
        only: The one target to read with; without one, that which has taken the least time so far is next.
        case_s: Seconds that a case may take.
    """
    report, spent, turns = Report(), defaultdict[str, float](float), Counter[str]()
    reader = _Reader(load, case_s)
    names = [only] if only else sorted(reader.seed_files)
    end = time.monotonic() + seconds
    try:
        while (begun := time.monotonic()) < end and report.cases.total() != cases:
            name = min(names, key=spent.__getitem__)
            files = reader.seed_files[name]
            case = Case(name, files[turns[name] % len(files)], seed)
            report.add(case, reader.ask(case))
            turns[name] += 1
            seed += 1
            if not reader.alive:  # loading again is paid for by the target that makes it necessary
                reader = _Reader(load, case_s)
            spent[name] += time.monotonic() - begun
    finally:
        reader.end()
    return report


class _Reader:
    """A process that reads one case after the other.

    Attributes:
        seed_files: Names of the sound files of each target.
    """

    def __init__(self, load: Load, case_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._case_s = case_s
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(load, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.seed_files = self._wait_for_names()

    def _wait_for_names(self) -> dict[str, list[str]]:
        with suppress(EOFError):
            if self._pipe.poll(_LOADING_S):
                names: dict[str, list[str]] = self._pipe.recv()
                return names
        self.end()
        raise RuntimeError("the targets cannot be loaded, or not in time")

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def ask(self, case: Case) -> Outcome:
        """Have one case read; a process that does not answer in time is ended."""
        try:
            self._pipe.send(case)
            if self._pipe.poll(self._case_s):
                outcome: Outcome = self._pipe.recv()
                return outcome
        except (EOFError, ConnectionError):
            self._process.join()
            return Outcome(fault=f"the process ended with {_describe_exit(self._process.exitcode)}")
        self.end()
        return Outcome(fault=f"no answer within {self._case_s:g} s")


def _describe_exit(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"


def _serve(load: Load, pipe: Connection) -> None:
    targets = {target.name: target for target in load()}
    _be_quiet()
    pipe.send({name: sorted(target.seeds) for name, target in targets.items()})
    while True:
        case: Case = pipe.recv()
        target = targets[case.target]
        pipe.send(run_case(target, case.seed_file, build_case(target, case.seed_file, case.seed)))


def _be_quiet() -> None:
    """Decoders written in C warn of every damage on the error output; ours do so in the log."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _forget_peak() -> None:
    """Let the largest size of this process begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    """Return a size of this process in bytes by its name in Linux's status file; 0 on other systems."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0
