"""What becomes of a run whose Ray dies: told by programs that only have the names of Ray's core processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.run.ray_processes import watched

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds processes in Linux's /proc"
)

_PROGRAM = """
import subprocess, sys, time
from pipelines.run.ray_processes import marked, watched
with marked("a mark"):
    processes = [subprocess.Popen(command) for command in {commands}]
time.sleep(0.2)
with watched("a mark"):
    print(*(process.pid for process in processes), flush=True)
    time.sleep({inside})
print("the block has ended", flush=True)
processes[0].kill()
time.sleep(0.3)
"""


def start(folder: Path, *names: str, inside: float = 60.0) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a program that watches sleeping processes of these names; return it and their ids."""
    sleep = shutil.which("sleep")
    assert sleep
    for name in names:
        shutil.copy(sleep, folder / name)
    return run(*([str(folder / name), "60"] for name in names), inside=inside)


def run(*commands: list[str], inside: float = 60.0) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a program that starts commands and watches them; return it and their ids."""
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(inside=inside, commands=commands)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout
    return program, [int(word) for word in program.stdout.readline().split()]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("name", "called"), [("gcs_server", "control service"), ("raylet", "node service")])
def test_a_core_process_that_dies_ends_the_run_in_one_line_and_takes_the_others_along(
    tmp_path: Path, name: str, called: str
) -> None:
    program, (core, helper) = start(tmp_path, name, "helper")
    os.kill(core, signal.SIGKILL)
    _, said = program.communicate(timeout=30)
    assert program.returncode == 1
    assert said.startswith(f"ovss: error: Ray's {called}")
    assert said.endswith("the same command goes on where it stopped\n")
    assert said.count("\n") == 1
    assert not is_running(helper)


def test_other_processes_may_die_and_core_processes_may_end_behind_the_block(tmp_path: Path) -> None:
    program, (core, helper) = start(tmp_path, "gcs_server", "helper", inside=1.0)
    os.kill(helper, signal.SIGKILL)
    printed, said = program.communicate(timeout=30)
    assert (program.returncode, printed, said) == (0, "the block has ended\n", "")
    assert not is_running(core)


def test_agents_that_have_lost_the_mark_are_taken_along(tmp_path: Path) -> None:
    raylet = tmp_path / "raylet"
    raylet.write_text("#!/bin/sh\nenv -i sleep 60 &\necho $! > $0.agent\nwait\n")
    (tmp_path / "run").mkdir()
    shell = shutil.which("sh")
    assert shell
    shutil.copy(shell, tmp_path / "run/raylet")
    program, [core] = run([str(tmp_path / "run/raylet"), str(raylet)])
    agent = int((tmp_path / "raylet.agent").read_text())
    assert is_running(agent)
    os.kill(core, signal.SIGKILL)
    program.communicate(timeout=30)
    assert program.returncode == 1
    assert not is_running(agent)


def test_where_nothing_was_started_nothing_is_watched() -> None:
    begin = time.monotonic()
    with watched("a mark that nobody carries"):
        pass
    assert time.monotonic() - begin < 5.0
