"""Kill labelling runs at random moments, start them again, and count what was lost: ``python -m tests.kill_campaign``.

Each trial starts ``ovss label`` on drawn scenes, waits a random time, and kills one victim with SIGKILL (or the driver
with SIGTERM): the driver, a worker that holds a model, one that reads, writes or waits, the ledger of attempts, an
agent of the node, the raylet, or Ray's control service. Then the same command runs until it ends by itself. A trial is sound when every image is in exactly one row,
every mask equals that of a run which nobody killed, and ``ovss verify`` agrees. A worker that dies is no reason for a
failure row: an image is set aside only after it has killed its worker twice, alone.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SCENES, SIDE, SHARD = 96, 96, 16
LONGEST_RUN_S = 900.0
"""More than `--no-progress-s`, after which a run that hangs gives up by itself."""
LEAVING_S = 15.0
STARTS = 4
FLAGS = (
    *("--model", "demo", "--vocabulary", "demo", "--host", "clearclip", "--actors", "1", "--batch-size", "4"),
    *("--windows.short_side", "64", "--windows.size", "64", "--windows.stride", "32", "--shard-size", "16"),
)
VICTIMS: dict[str, tuple[str, ...]] = {
    "driver": (),
    "driver, SIGTERM": (),
    "model worker": ("ray::MapWorker",),
    "reader, writer or idle worker": ("ray::MapBatches", "ray::merge_part", "ray::IDLE"),
    "ledger": ("ray::AttemptRecord",),
    "agent": ("ray::RuntimeEnvAgent", "ray::DashboardAgent"),
    "raylet": ("/raylet/raylet",),
    "control service": ("gcs_server",),
}
NOBODY = "nobody"
SHARES = (1.0, 0.6, 0.3)
"""A run that ends before its moment comes is tried again with an earlier one: not all are as slow as the first."""
COUNTS = ("lost", "doubled", "differing", "failed", "left")
SOURCES = {"folder": "--images", "webdataset": "--webdataset", "parquet": "--parquet"}


@dataclass(frozen=True)
class Trial:
    """One killed run and what became of it.

    Attributes:
        victim: What was killed; "nobody" where the run ended before the moment came.
        after_s: Seconds from the start to the moment of the kill.
        starts: How often the command had to be started until it ended with status 0.
        lost: Images without a row.
        doubled: Images with more than one row.
        differing: Masks that differ from the undisturbed run's.
        failed: Rows in ``failures/``.
        left: Processes of Ray that a driver left behind which ended by itself.
        verified: Whether ``ovss verify`` ended with status 0.
    """

    seed: int
    source: str
    victim: str
    after_s: float
    starts: int
    lost: int
    doubled: int
    differing: int
    failed: int
    left: int
    verified: bool

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, and nothing left behind."""
        return self.verified and not any(getattr(self, name) for name in COUNTS)


@dataclass(frozen=True)
class Reference:
    """A run that nobody disturbed.

    Attributes:
        masks: The bytes of each image's mask.
        spans: When each victim was there: seconds from the start to its first and last sight.
    """

    masks: Mapping[str, bytes]
    spans: Mapping[str, tuple[float, float]]


def run_campaign(runs: int, seed: int, folder: Path) -> list[Trial]:
    """Run so many trials and report each as it ends.

    Args:
        runs: Number of trials; victims take turns, and each meets another source the next time.
        seed: Seed of the first trial; they count up from it. A seed decides victim, source and moment.
        folder: Holds scenes, reference runs and the outputs of the trials.
    """
    references: dict[str, Reference] = {}
    trials = []
    for number in range(seed, seed + runs):
        source = list(SOURCES)[(number % len(VICTIMS) + number // len(VICTIMS)) % len(SOURCES)]
        if source not in references:
            references[source] = _reference(source, folder)
        for share in SHARES:
            trial = _trial(number, share, source, references[source], folder)
            if trial.victim != NOBODY:
                break
        trials.append(trial)
        print(f"{'sound' if trial.sound else 'BROKEN'}: {trial}", flush=True)
        if not trial.sound:
            print(_log(folder / f"trial-{number}-{share:g}"), flush=True)
    return trials


def _reference(source: str, folder: Path) -> Reference:
    """Draw the scenes and label them undisturbed."""
    scenes = folder / f"scenes-{source}"
    drawn = ("--count", str(SCENES), "--size", str(SIDE), "--shard", str(SHARD), "--format", source)
    subprocess.run([*_ovss("scenes"), *drawn, "--output", str(scenes)], check=True, capture_output=True)
    output = folder / f"reference-{source}"
    process = _start(source, folder, output)
    spans = _watch(process)
    if _wait(process) != 0:
        raise SystemExit(f"the undisturbed run failed: {_log(output)}")
    rows = _rows(output, "labels")
    if len(rows) != SCENES:
        raise SystemExit(f"the undisturbed run has {len(rows)} rows for {SCENES} scenes")
    return Reference({row["image_id"]: row["mask"] for row in rows}, spans)


def _watch(process: subprocess.Popen[bytes]) -> dict[str, tuple[float, float]]:
    spans: dict[str, tuple[float, float]] = {}
    begun = time.monotonic()
    while process.poll() is None:
        now = time.monotonic() - begun
        for victim in VICTIMS:
            if "driver" in victim or _candidates(process, victim):
                spans[victim] = (spans.get(victim, (now, now))[0], now)
        time.sleep(0.1)
    return spans


def _trial(seed: int, share: float, source: str, reference: Reference, folder: Path) -> Trial:
    """Kill and judge one run, somewhere in the first `share` of the time in which its victim is there."""
    victim, chance = list(VICTIMS)[seed % len(VICTIMS)], random.Random(seed)
    output = folder / f"trial-{seed}-{share:g}"
    process = _start(source, folder, output)
    first, last = reference.spans[victim]
    moment = first + share * chance.random() * (last - first)
    killed = _kill_at(process, victim, moment, chance)
    starts, left = 1, 0
    while True:
        status = _wait(process)
        left += 0 if status == -signal.SIGKILL else _left_running(process)
        _end_all(process)
        if status == 0:
            break
        if starts == STARTS:
            raise SystemExit(f"seed {seed}: no start of {STARTS} ended well: {_log(output)}")
        process = _start(source, folder, output)
        starts += 1
    verify = subprocess.run(
        [*_ovss("verify"), str(output), "--content"], capture_output=True, text=True, check=False
    )
    if verify.returncode:
        print(verify.stdout, verify.stderr, flush=True)
    return Trial(
        seed,
        source,
        victim if killed else NOBODY,
        round(moment, 2),
        starts,
        **compare_rows(reference.masks, _rows(output, "labels"), _rows(output, "_failures")),
        left=left,
        verified=verify.returncode == 0,
    )


def compare_rows(
    masks: Mapping[str, bytes], labelled: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """Count what the rows of a run lack, against the masks by image that they should hold."""
    found = Counter(row["image_id"] for row in (*labelled, *failed))
    return {
        "lost": len(masks.keys() - found.keys()),
        "doubled": sum(count > 1 for count in found.values()),
        "differing": sum(masks.get(row["image_id"]) != row["mask"] for row in labelled),
        "failed": len(failed),
    }


def _kill_at(process: subprocess.Popen[bytes], victim: str, moment: float, chance: random.Random) -> bool:
    """Wait for the moment and kill; a victim that is not there yet is waited for until the run ends."""
    time.sleep(moment)
    while process.poll() is None:
        if "driver" in victim:
            process.send_signal(signal.SIGTERM if "SIGTERM" in victim else signal.SIGKILL)
            return True
        if candidates := _candidates(process, victim):
            pid, command = chance.choice(candidates)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                print(f"killed {command[:100].strip()}", flush=True)
                return True
        time.sleep(0.05)
    return False


def _candidates(run: subprocess.Popen[bytes], victim: str) -> list[tuple[int, str]]:
    return [entry for entry in _processes(run) if any(name in entry[1] for name in VICTIMS[victim])]


def _processes(run: subprocess.Popen[bytes]) -> Iterator[tuple[int, str]]:
    """Yield the living processes of a run with their command lines: those of its session, whoever started them."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, session = (
                (folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()[:4]
            )
            if int(session) == run.pid and state != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                yield int(folder.name), command.decode(errors="replace").strip()


def _ovss(command: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", command]


def _start(source: str, folder: Path, output: Path) -> subprocess.Popen[bytes]:
    images = folder / f"scenes-{source}"
    given = (SOURCES[source], str(images / "images" if source == "folder" else images))
    log = output.with_suffix(".log").open("ab")
    return subprocess.Popen(
        [*_ovss("label"), *given, *FLAGS, "--output", str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a run to end; one that does not is no sound one.

    Raises:
        SystemExit: It hangs.
    """
    try:
        return process.wait(LONGEST_RUN_S)
    except subprocess.TimeoutExpired:
        _end_all(process)
        raise SystemExit(f"a run did not end within {LONGEST_RUN_S:g} s") from None


def _left_running(run: subprocess.Popen[bytes]) -> int:
    """Count the processes that a driver which ended by itself has left, after a while for them to go."""
    end = time.monotonic() + LEAVING_S
    while (left := len(list(_processes(run)))) and time.monotonic() < end:
        time.sleep(0.2)
    for pid, command in _processes(run):
        print(f"left running: {pid} {command[:120]}", flush=True)
    return left


def _end_all(run: subprocess.Popen[bytes]) -> None:
    """End what a killed driver left of Ray."""
    for pid, _ in _processes(run):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _rows(output: Path, table: str) -> list[dict[str, Any]]:
    files = sorted((output / table).glob("*.p*q*"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def _log(output: Path) -> str:
    return output.with_suffix(".log").read_text(errors="replace")[-2000:]


def as_markdown(trials: Sequence[Trial]) -> str:
    """Return one row a victim: trials, starts needed, and what was lost in all of them together."""
    lines = [
        "| killed | trials | starts needed (most) | images lost | doubled | other masks | failed | processes left | verified |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for victim in dict.fromkeys(trial.victim for trial in trials):
        group = [trial for trial in trials if trial.victim == victim]
        starts = max(trial.starts for trial in group)
        counts = [sum(getattr(trial, name) for trial in group) for name in COUNTS]
        verified = sum(trial.verified for trial in group)
        row = [victim, len(group), starts, *counts, f"{verified} of {len(group)}"]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, print the table, and return 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description="Kill labelling runs at random moments and count what is lost."
    )
    parser.add_argument(
        "--runs", type=int, default=24, help="Trials; a trial takes one to three runs of the job."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the first trial; they count up from it.")
    parser.add_argument("--output", type=Path, help="JSON file for the trials.")
    parser.add_argument("--folder", type=Path, help="Keep scenes, outputs and logs there.")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ovss-kills-") as passing:
        folder = given.folder or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        trials = run_campaign(given.runs, given.seed, folder)
    if given.output:
        given.output.write_text(json.dumps([asdict(trial) for trial in trials], indent=1) + "\n")
    print(as_markdown(trials))
    return 0 if all(trial.sound for trial in trials) else 1


if __name__ == "__main__":
    raise SystemExit(main())
