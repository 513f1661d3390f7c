"""Kill labelling runs at random moments, start them again, and count what was lost: ``python -m tests.kill_campaign``.

Each trial starts ``ovss label`` on drawn scenes, waits a random time, and kills one victim with SIGKILL (or the driver
with SIGTERM): the driver, a worker that holds a model, a worker that reads or writes, the raylet, or Ray's control
service. Then the same command runs until it ends by itself. A trial is sound when every image is in exactly one row,
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

MARK = "OVSS_KILL_CAMPAIGN"
SCENES, SIDE, SHARD = 96, 96, 16
LONGEST_RUN_S = 240.0
STARTS = 4
FLAGS = (
    *("--model", "demo", "--vocabulary", "demo", "--host", "clearclip", "--actors", "1", "--batch-size", "4"),
    *("--windows.short_side", "64", "--windows.size", "64", "--windows.stride", "32", "--shard-size", "16"),
)
VICTIMS: dict[str, tuple[str, ...]] = {
    "driver": (),
    "driver, SIGTERM": (),
    "model worker": ("ray::_MapWorker", "ray::MapWorker", "ray::Map"),
    "other worker": ("ray::",),
    "raylet": ("/raylet/raylet",),
    "control service": ("gcs_server",),
}
SOURCES = {"folder": "--images", "webdataset": "--webdataset", "parquet": "--parquet"}


@dataclass(frozen=True)
class Trial:
    """One killed run and what became of it.

    Attributes:
        victim: What was killed; "nobody" where the run ended before the moment came.
        after_s: Seconds from the start to the kill.
        starts: How often the command had to be started until it ended with status 0.
        lost: Images without a row.
        doubled: Images with more than one row.
        differing: Masks that differ from the undisturbed run's.
        failed: Rows in ``failures/``.
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
    verified: bool

    @property
    def sound(self) -> bool:
        """Whether nothing was lost."""
        return self.verified and not (self.lost or self.doubled or self.differing or self.failed)


def run_campaign(runs: int, seed: int, folder: Path) -> list[Trial]:
    """Run so many trials and report each as it ends.

    Args:
        runs: Number of trials; victims and kinds of source take turns.
        seed: Decides victims and moments.
        folder: Holds scenes, reference runs and the outputs of the trials.
    """
    references: dict[str, tuple[dict[str, bytes], float]] = {}
    trials = []
    for number in range(runs):
        source = list(SOURCES)[number % len(SOURCES)]
        if source not in references:
            references[source] = _reference(source, folder)
        masks, usual = references[source]
        trial = _trial(seed + number, list(VICTIMS)[number % len(VICTIMS)], source, masks, usual, folder)
        trials.append(trial)
        print(f"{'sound' if trial.sound else 'BROKEN'}: {trial}", flush=True)
    return trials


def _reference(source: str, folder: Path) -> tuple[dict[str, bytes], float]:
    """Draw the scenes and label them undisturbed; returns the masks by image and the seconds it took."""
    scenes = folder / f"scenes-{source}"
    drawn = ("--count", str(SCENES), "--size", str(SIDE), "--shard", str(SHARD), "--format", source)
    subprocess.run([*_ovss("scenes"), *drawn, "--output", str(scenes)], check=True, capture_output=True)
    start = time.monotonic()
    process = _start(source, folder, folder / f"reference-{source}")
    if _wait(process) != 0:
        raise SystemExit(f"the undisturbed run failed: {_log(folder / f'reference-{source}')}")
    rows = _rows(folder / f"reference-{source}", "labels")
    if len(rows) != SCENES:
        raise SystemExit(f"the undisturbed run has {len(rows)} rows for {SCENES} scenes")
    return {row["image_id"]: row["mask"] for row in rows}, time.monotonic() - start


def _trial(seed: int, victim: str, source: str, masks: dict[str, bytes], usual: float, folder: Path) -> Trial:
    chance = random.Random(seed)
    output = folder / f"trial-{seed}"
    process = _start(source, folder, output)
    moment = chance.uniform(0.0, usual)
    killed = _kill_at(process, victim, moment, chance)
    starts = 1
    while _wait(process) != 0:
        if starts == STARTS:
            raise SystemExit(f"seed {seed}: no start of {STARTS} ended well: {_log(output)}")
        process = _start(source, folder, output)
        starts += 1
    rows, failed = _rows(output, "labels"), _rows(output, "failures")
    found = Counter(row["image_id"] for row in (*rows, *failed))
    verify = subprocess.run([*_ovss("verify"), str(output)], capture_output=True, check=False)
    return Trial(
        seed,
        source,
        victim if killed else "nobody",
        round(moment, 2),
        starts,
        lost=len(masks.keys() - found.keys()),
        doubled=sum(count > 1 for count in found.values()),
        differing=sum(masks.get(row["image_id"]) != row["mask"] for row in rows),
        failed=len(failed),
        verified=verify.returncode == 0,
    )


def _kill_at(process: subprocess.Popen[bytes], victim: str, moment: float, chance: random.Random) -> bool:
    """Wait for the moment and kill; a victim that is not there yet is waited for until the run ends."""
    time.sleep(moment)
    while process.poll() is None:
        if "driver" in victim:
            process.send_signal(signal.SIGTERM if "SIGTERM" in victim else signal.SIGKILL)
            return True
        candidates = [
            pid for pid, command in _processes() if any(name in command for name in VICTIMS[victim])
        ]
        if candidates:
            try:
                os.kill(chance.choice(candidates), signal.SIGKILL)
            except ProcessLookupError:
                continue
            return True
        time.sleep(0.05)
    return False


def _processes() -> Iterator[tuple[int, str]]:
    """Yield the processes of this campaign's run that are alive, with their command lines."""
    mark = f"{MARK}={os.getpid()}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, UnicodeDecodeError):
                continue


def _ovss(command: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", command]


def _start(source: str, folder: Path, output: Path) -> subprocess.Popen[bytes]:
    images = folder / f"scenes-{source}"
    given = (SOURCES[source], str(images / "images" if source == "folder" else images))
    log = output.with_suffix(".log").open("ab")
    return subprocess.Popen(
        [*_ovss("label"), *given, *FLAGS, "--output", str(output)],
        env={**os.environ, MARK: str(os.getpid()), "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a run, and end what a killed driver left of Ray."""
    try:
        status = process.wait(LONGEST_RUN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    for pid, _ in _processes():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return status


def _rows(output: Path, table: str) -> list[dict[str, Any]]:
    files = sorted((output / table).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def _log(output: Path) -> str:
    return output.with_suffix(".log").read_text(errors="replace")[-2000:]


def as_markdown(trials: Sequence[Trial]) -> str:
    """Return one row a victim: trials, starts needed, and what was lost in all of them together."""
    lines = [
        "| killed | trials | starts needed (most) | images lost | doubled | other masks | failed | verified |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for victim in dict.fromkeys(trial.victim for trial in trials):
        group = [trial for trial in trials if trial.victim == victim]
        starts = max(trial.starts for trial in group)
        counts = [
            sum(getattr(trial, name) for trial in group)
            for name in ("lost", "doubled", "differing", "failed")
        ]
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
    parser.add_argument("--seed", type=int, default=0, help="Decides victims and moments.")
    parser.add_argument("--output", type=Path, help="JSON file for the trials.")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ovss-kills-") as folder:
        trials = run_campaign(given.runs, given.seed, Path(folder))
    if given.output:
        given.output.write_text(json.dumps([asdict(trial) for trial in trials], indent=1) + "\n")
    print(as_markdown(trials))
    return 0 if all(trial.sound for trial in trials) else 1


if __name__ == "__main__":
    raise SystemExit(main())
