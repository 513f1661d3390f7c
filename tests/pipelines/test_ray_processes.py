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
import os, subprocess, time
from pathlib import Path
from pipelines.run.ray_processes import marked, watched

def wait_for(met):
    while not met():
        time.sleep(0.02)

def has_agent(file):
    number = file.read_text().strip() if file.exists() else ""
    return number and b"agent.py" in Path("/proc", number, "cmdline").read_bytes()

mark = f"a mark of {{os.getpid()}}"  # other tests run at the same time
with marked(mark):
    processes = [subprocess.Popen(command) for command in {commands}]
for process in processes:  # a busy machine shows a mark late
    wait_for(lambda: mark.encode() in Path(f"/proc/{{process.pid}}/environ").read_bytes())
wait_for(lambda: not {agent!r} or has_agent(Path({agent!r})))
with watched(mark):
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


def run(
    *commands: list[str], inside: float = 60.0, agent: str = ""
) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a program that starts commands and watches them; return it and their ids."""
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(inside=inside, commands=commands, agent=agent)],
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
    _, said = program.communicate(timeout=100)
    assert program.returncode == 1
    assert said.startswith(f"ovss: error: Ray's {called}")
    assert said.endswith("the same command goes on where it stopped\n")
    assert said.count("\n") == 1
    assert not is_running(helper)


def test_other_processes_may_die_and_core_processes_may_end_behind_the_block(tmp_path: Path) -> None:
    program, (core, helper) = start(tmp_path, "gcs_server", "helper", inside=1.0)
    os.kill(helper, signal.SIGKILL)
    printed, said = program.communicate(timeout=100)
    assert (program.returncode, printed, said) == (0, "the block has ended\n", "")
    assert not is_running(core)


def start_with_agent(folder: Path) -> tuple[subprocess.Popen[str], int, int]:
    """Start a program whose raylet has an agent without the mark; return it and the ids of both."""
    (folder / "dashboard").mkdir()
    for program, copy in (("sh", "dashboard/raylet"), ("sleep", "dashboard/agent.py")):
        path = shutil.which(program)
        assert path
        shutil.copy(path, folder / copy)
    script = folder / "script"
    script.write_text("env -i ${0%script}dashboard/agent.py 60 &\necho $! > $0.agent\nwait\nsleep 60\n")
    command = [str(folder / "dashboard/raylet"), str(script)]
    watching, [raylet] = run(command, agent=str(folder / "script.agent"))
    return watching, raylet, int((folder / "script.agent").read_text())


@pytest.mark.parametrize("dies", ["raylet", "agent"])
def test_an_agent_goes_with_its_raylet_and_the_run_with_either(tmp_path: Path, dies: str) -> None:
    program, raylet, agent = start_with_agent(tmp_path)
    assert is_running(raylet)
    assert is_running(agent)
    os.kill(agent if dies == "agent" else raylet, signal.SIGKILL)
    _, said = program.communicate(timeout=100)
    assert program.returncode == 1
    assert said.startswith(f"ovss: error: Ray's {'agent' if dies == 'agent' else 'node service'}")
    assert not is_running(agent)
    assert not is_running(raylet)


def test_where_nothing_was_started_nothing_is_watched() -> None:
    begin = time.monotonic()
    with watched("a mark that nobody carries"):
        pass
    assert time.monotonic() - begin < 60.0
