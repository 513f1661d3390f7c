"""How a command ends: the status and the one line that say why."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from jobs.reporting import reported
from ovss_core.errors import ClusterError, ConfigError, OvssError, StorageError

_PATIENCE_S = 100
"""Only a busy machine needs it."""
_WAITS = """
import sys, time
from jobs.reporting import reported

def work(arguments):
    try:
        print("ready", flush=True)
        time.sleep(600)
    finally:
        print("cleaning up", flush=True)
        time.sleep(float(sys.argv[1]))
        print("clean", flush=True)

sys.exit(reported(work)())
"""


def status_of(error: BaseException) -> int:
    def main(arguments: object = None) -> int:
        raise error

    return reported(main)()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("a setting"), 2, "error: a setting"),
        (StorageError("no folder"), 2, "error: no folder"),
        (ClusterError("too small"), 2, "error: too small"),
        (OvssError("the run stopped"), 1, "error: the run stopped"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/x"),
            1,
            "error: /out/x: No space left on device; put that right, and the same command goes on",
        ),
        (OSError("store said 500\nbody"), 1, "error: store said 500; put that right"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on where it stopped"),
    ],
)
def test_every_end_has_its_status_and_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    assert status_of(error) == status
    printed = capsys.readouterr().err
    assert printed.startswith(f"ovss: {line}")
    assert printed.count("\n") == 1


def _heed_signals() -> None:
    """Undo what a test run in the background or under nohup inherits."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(seconds: float, *before: str) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", _WAITS, str(seconds)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=_heed_signals)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "ended by SIGTERM"),
        (signal.SIGHUP, "ended by SIGHUP"),
    ],
)
def test_a_signal_ends_the_command_after_it_has_cleaned_up(number: signal.Signals, line: str) -> None:
    process = start(0.0)
    process.send_signal(number)
    output, errors = process.communicate(timeout=_PATIENCE_S)
    assert (process.returncode, output) == (128 + number, "cleaning up\nclean\n")
    assert errors == f"ovss: {line}; the same command goes on where it stopped\n"


def test_a_second_signal_does_not_wait_for_the_cleaning() -> None:
    process = start(600.0)
    process.send_signal(signal.SIGINT)
    assert process.stdout
    assert process.stdout.readline() == "cleaning up\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=_PATIENCE_S) == 130


def test_a_hangup_that_is_ignored_as_under_nohup_stays_ignored() -> None:
    code = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    process = start(0.0, sys.executable, "-c", code)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=_PATIENCE_S) == 128 + signal.SIGTERM


def test_output_that_nobody_reads_any_more_is_no_error() -> None:
    code = (
        "from jobs.reporting import reported\n"
        "def main(arguments):\n    [print('x' * 1000) for _ in range(1000)]\n    return 0\n"
        "raise SystemExit(reported(main)())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=_PATIENCE_S) == 128 + signal.SIGPIPE
