"""Starting Ray: without its chatter, where it has room, gone when the run ends, and one line where it cannot."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info

from ovss_core.errors import ClusterError
from pipelines.run.cluster import connected, explain_start, temporary_folder

ImageFolder = Callable[..., Path]
_LONG = "a_folder_of_a_batch_system_with_a_long_name_for_every_job_of_every_user/job.1355700"
_MARK = "OVSS_TEST_RUN"


def label(images: Path, output: Path, **environment: str) -> subprocess.Popen[str]:
    """Start ``ovss label`` in a session of its own; its processes carry a mark in their environment."""
    flags = f"label --images {images} --vocabulary demo --output {output} --model demo --pretrained random"
    flags += " --host clearclip --purify none --windows.short_side 32 --windows.size 32 --windows.stride 32"
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *flags.split(), "--actors", "1"],
        env={**os.environ, _MARK: uuid.uuid4().hex, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def foreign_lines(said: str) -> list[str]:
    """Return what is not ours."""
    return [line for line in said.splitlines() if not line.startswith("ovss: ")]


def processes_with(mark: str) -> dict[int, str]:
    """Return the command lines of the processes that carry a mark, by their ids."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                found[int(folder.name)] = command
    return found


def test_a_folder_that_is_too_long_for_sockets_is_replaced_by_a_short_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert temporary_folder() is None
    monkeypatch.setenv("TMPDIR", str(tmp_path / _LONG))
    assert temporary_folder() == "/tmp/ray"
    assert not (tmp_path / _LONG).exists()


def test_a_folder_that_cannot_be_used_is_named_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with pytest.raises(
        ClusterError, match=r"Ray cannot start: /proc/nowhere cannot be used .*set RAY_TMPDIR"
    ):
        temporary_folder()
    monkeypatch.setattr("pipelines.run.cluster._SHORT_FOLDERS", (str(tmp_path / "f"),))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / _LONG))
    with pytest.raises(
        ClusterError, match=r"characters too long for its sockets; \S+ (is \d+|cannot be used)"
    ):
        temporary_folder()
    monkeypatch.setattr("pipelines.run.cluster._LEAST_FREE_BYTES", 1 << 60)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with pytest.raises(ClusterError, match=r"/tmp has only \d+ MB free"):
        temporary_folder()


def test_other_versions_on_the_cluster_are_told_in_one_line() -> None:
    with pytest.raises(RuntimeError, match="Version mismatch") as error:
        check_version_info({"ray_version": "2.9.0", "python_version": "3.9.1"}, "node 10.0.0.1")
    text = explain_start(error.value, "10.0.0.2:6379")
    assert text.startswith(
        "cannot join the Ray cluster at 10.0.0.2:6379: it runs Ray 2.9.0, Python 3.9.1, this"
    )
    assert "\n" not in text


def test_an_error_of_ray_becomes_its_first_line_with_what_to_look_at() -> None:
    text = explain_start(RuntimeError("Failed to start GCS.\nlast lines of a log\nmore"), None)
    assert text.startswith("Ray cannot start on this machine: Failed to start GCS; check the room in /")
    assert explain_start(ConnectionRefusedError(111, "Connection refused"), "h:1").endswith(
        "; check --address"
    )


@pytest.mark.cluster
def test_a_run_says_each_step_and_ray_says_nothing_and_leaves_nothing_and_a_finished_one_needs_no_ray(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output, folder = image_folder(3), tmp_path / "out", tmp_path / _LONG
    folder.mkdir(parents=True)
    run = label(images, output, TMPDIR=str(folder))
    printed, said = run.communicate(timeout=200)
    assert (run.returncode, printed.splitlines()[0][:40]) == (0, "3 images: 3 labelled, 0 failed; this sta")
    assert "ovss: starting Ray on this machine ...\n" in said
    assert "ovss: starting workers (1 x segment)\n" in said
    assert foreign_lines(said) == []
    assert said.splitlines()[-1].startswith("ovss: 3 of 3 images (100 %)")
    [log] = (output / "_log").iterdir()
    assert "ovss: starting Ray on this machine ...\n" in log.read_text()
    assert log.read_text().splitlines()[-1].partition(" ovss: ")[2].startswith("3 of 3 images (100 %)")

    again = label(images, output, RAY_TMPDIR="/proc/nowhere")  # where Ray could not start
    printed, said = again.communicate(timeout=100)
    assert (again.returncode, "starting Ray" in said) == (0, False)
    assert printed.startswith("3 images: 3 labelled, 0 failed; nothing was left to do\n")

    (images / "new.jpg").write_bytes((images / "0000.jpg").read_bytes())
    refused = label(images, output, RAY_TMPDIR="/proc/nowhere")
    _, said = refused.communicate(timeout=100)
    assert refused.returncode == 2
    assert said.splitlines()[-1].startswith("ovss: error: Ray cannot start: /proc/nowhere")


@pytest.mark.cluster
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in Linux's /proc")
@pytest.mark.parametrize(
    ("number", "moment", "seconds"),
    [
        (signal.SIGTERM, "starting Ray", 1.0),
        (signal.SIGINT, "starting Ray", 2.5),
        (signal.SIGTERM, "starting Ray", 3.5),
        (signal.SIGHUP, "starting workers", 0.0),
        (signal.SIGINT, "starting workers", 2.0),
        (signal.SIGTERM, "starting workers", 4.0),
    ],
)
def test_a_signal_ends_the_run_with_one_line_and_nothing_of_ray_is_left(
    image_folder: ImageFolder, tmp_path: Path, number: signal.Signals, moment: str, seconds: float
) -> None:
    mark = uuid.uuid4().hex
    run = label(image_folder(300), tmp_path / "out", **{_MARK: mark})
    assert run.stderr
    assert any(moment in line for line in run.stderr)
    time.sleep(seconds)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + number, said
    name = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert said.splitlines()[-1] == f"ovss: {name}; the same command goes on where it stopped"
    assert foreign_lines(said) == []
    assert processes_with(mark) == {}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in Linux's /proc")
@pytest.mark.parametrize("program", ["gcs_server", "raylet"])
def test_a_ray_that_dies_ends_the_run_with_one_line_and_nothing_of_it_is_left(
    image_folder: ImageFolder, tmp_path: Path, program: str
) -> None:
    mark = uuid.uuid4().hex
    run = label(image_folder(300), tmp_path / "out", **{_MARK: mark})
    assert run.stderr
    assert any("starting workers" in line for line in run.stderr)
    commands = processes_with(mark)
    [core] = [number for number, command in commands.items() if command.split()[0].endswith(f"/{program}")]
    os.kill(core, signal.SIGKILL)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 1, said
    assert "has died (was it killed, or is memory short?); the same command goes on" in said.splitlines()[-1]
    assert foreign_lines(said) == []
    assert processes_with(mark) == {}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in Linux's /proc")
def test_a_worker_that_is_killed_while_it_starts_does_not_hold_up_the_run(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    run = label(image_folder(5), tmp_path / "out", **{_MARK: mark})
    starting: list[int] = []
    while not starting and run.poll() is None:
        commands = processes_with(mark)
        starting = [number for number, command in commands.items() if is_starting_worker(command)]
    os.kill(starting[0], signal.SIGKILL)
    try:
        printed, said = run.communicate(timeout=100)
    finally:
        run.kill()
    assert run.returncode == 0, said
    assert printed.startswith("5 images: 5 labelled, 0 failed")


def is_starting_worker(command: str) -> bool:
    """Say whether a process is a worker that has no title yet; the raylet's own command names the program, too."""
    program, *arguments = command.split() or [""]
    return "python" in program and any(word.endswith("/default_worker.py") for word in arguments[:3])


@pytest.mark.parametrize(
    ("fault", "address", "starts"),
    [
        ("The current node timed out during startup. This could happen because ...", None, 2),
        ("The current node timed out during startup. This could happen because ...", "h", 1),
        ("Failed to start GCS.", None, 1),
    ],
)
def test_a_ray_of_its_own_that_was_slow_to_start_is_started_once_more(
    fault: str, address: str | None, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def fail(**options: object) -> None:
        tried.append(options)
        raise Exception(fault)  # noqa: TRY002 (as Ray does)

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=re.escape(fault.partition(".")[0])), connected(address):
        pass
    assert len(tried) == starts
