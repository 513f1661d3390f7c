"""Record a run on a local cluster of three nodes of which one dies, after a fourth has joined: `python -m tests.record_cluster docs/`.

The terminal that is recorded is a real one of this machine, with the command's live display; nodes are Ray's processes on
one machine, as `ray.cluster_utils` starts them; only the machine's own folders and address are taken out. Written are `cluster-session.cast` (asciinema, version 2) and
`cluster-session.txt`: what the run said line by line, with its own clock, and what happened to the nodes meanwhile.
"""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.cli import main as ovss

WIDTH, HEIGHT = 100, 16
IMAGES, SIDE = 500, 168
JOINS_AT, DIES_AT = 0.25, 0.6
"""Shares of the images at which a node joins, and one dies."""
_DONE = re.compile(r"([\d,]+) of ([\d,]+) images")
_FRAME_S = 1.0


@dataclass
class Recording:
    """What a terminal has shown, with the seconds since it began."""

    start: float = field(default_factory=time.time)
    events: list[tuple[float, str]] = field(default_factory=list)
    happened: list[tuple[float, str]] = field(default_factory=list)

    def show(self, text: str) -> None:
        """Take what a program wrote; frames of one second are put together, which leaves out nothing."""
        now = time.time() - self.start
        if self.events and now - self.events[-1][0] < _FRAME_S:
            self.events[-1] = (self.events[-1][0], self.events[-1][1] + text)
        else:
            self.events.append((now, text))

    def note(self, text: str) -> None:
        """Say what happens to the cluster."""
        self.happened.append((time.time(), text))
        print(text, file=sys.stderr, flush=True)

    def cast(self, title: str) -> str:
        """Return the session as asciinema has it; what happens to nodes is its markers."""
        header = {
            "version": 2,
            "width": WIDTH,
            "height": HEIGHT,
            "timestamp": int(self.start),
            "title": title,
        }
        shown: list[tuple[float, str, str]] = [(at, "o", text) for at, text in self.events]
        marked = [(at - self.start, "m", text) for at, text in self.happened]
        entries = [[round(at, 3), kind, text] for at, kind, text in sorted(shown + marked)]
        return "\n".join(json.dumps(entry, ensure_ascii=False) for entry in [header, *entries]) + "\n"

    def lines(self, log: str) -> list[str]:
        """Return the lines of the run's own log, with the nodes' among them by their clocks."""
        own = [(line.partition(" ")[0], line) for line in log.splitlines()]
        stamps = [(_stamp(at), f"{_stamp(at)} ---- {text} ----") for at, text in self.happened]
        return [line for _, line in sorted([*own, *stamps], key=lambda entry: entry[0])]


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def run_in_terminal(command: list[str], recording: Recording, watch: Callable[[int, int], None]) -> int:
    """Run a command in a terminal of its own until it ends, and return its status.

    Args:
        watch: Told how many images are done, of how many, whenever the display says so.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    for text in _pieces(ours):
        recording.show(text)
        for done, total in _DONE.findall(text)[-1:]:
            watch(int(done.replace(",", "")), int(total.replace(",", "")))
    return process.wait()


def _pieces(terminal: int) -> Iterator[str]:
    """Yield what comes from a terminal until its last program has gone."""
    left = b""
    while True:
        select.select([terminal], [], [])
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # the other end is closed
            return
        if not data:
            return
        data = left + data
        text = data.decode(errors="ignore")
        left = b"" if len(text.encode()) == len(data) else data[len(text.encode()) :]
        yield text


def record(folder: Path) -> tuple[Recording, str]:
    """Label drawn scenes on a cluster that changes; return the session, and the run's own log.

    Raises:
        RuntimeError: The run failed, or an image has not exactly one row.
    """
    from ray.cluster_utils import Cluster

    images, output = folder / "scenes", folder / "labels"
    ovss(["scenes", "--count", str(IMAGES), "--seed", "7", "--size", str(SIDE), "--output", str(images)])
    store = {"object_store_memory": 100_000_000}
    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick, **store})
    workers = [cluster.add_node(num_cpus=1, **store) for _ in range(2)]
    recording = Recording()
    recording.note("3 nodes: a head without CPUs, and two workers of 1 CPU")
    shown = ["ovss", "label", "--images", "scenes/images", "--vocabulary", "demo", "--model", "demo"]
    shown += ["--actors", "1:4", "--finish-actors", "0", "--output", "labels", "--address", cluster.address]
    recording.show(f"$ {' '.join(shown)}\r\n")
    given = {"scenes/images": str(images / "images"), "labels": str(output)}
    command = [sys.executable, "-m", "jobs.cli", *(given.get(word, word) for word in shown[1:])]

    def watch(done: int, total: int) -> None:
        if len(workers) == 2 and done >= JOINS_AT * total:
            workers.append(cluster.add_node(num_cpus=1, **store))
            recording.note(f"a node of 1 CPU joins after {done} images")
        if len(workers) == 3 and workers[0] is not None and done >= DIES_AT * total:
            cluster.remove_node(workers[0], allow_graceful=False)
            workers[0] = None
            recording.note(f"the first worker node dies after {done} images")

    try:
        status = run_in_terminal(command, recording, watch)
    finally:
        cluster.shutdown()
    rows = [name for file in (output / "labels").iterdir() for name in _ids(file)]
    if (
        status
        or len(workers) != 3
        or workers[0] is not None
        or len(rows) != len(set(rows))
        or len(rows) != IMAGES
    ):
        raise RuntimeError(
            f"status {status}, {len(rows)} rows of {len(set(rows))} images; nothing is recorded"
        )
    recording.note(f"the command has ended with status 0; {len(rows)} rows of {len(set(rows))} images")
    [log] = (output / "_log").iterdir()
    host = cluster.address.partition(":")[0]
    for place, (at, text) in enumerate(recording.events):
        recording.events[place] = (at, text.replace(host, "HEAD").replace(str(folder), ""))
    return recording, log.read_text().replace(host, "HEAD").replace(str(folder), "")


def _ids(file: Path) -> list[Any]:
    ids: list[Any] = pq.read_table(file, columns=["image_id"])["image_id"].to_pylist()
    return ids


def main(target: str) -> None:
    """Record, and write both files into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        recording, log = record(Path(folder))
        cast = recording.cast("ovss label on a cluster that loses a node")
        Path(target, "cluster-session.cast").write_text(cast)
        Path(target, "cluster-session.txt").write_text("\n".join(recording.lines(log)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
