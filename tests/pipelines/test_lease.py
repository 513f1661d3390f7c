import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ovss_core.errors import OvssError
from pipelines.run import lease as leases
from pipelines.run.lease import LEASE, Lease, LeaseLostError, OutputInUseError, held
from pipelines.run.stopping import Interrupted, Stop, ask_to_stop
from pipelines.storage import Folder
from tests.pipelines.test_cluster import label

ImageFolder = Callable[..., Path]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    monkeypatch.setattr(leases, "LOST_S", 2.0)


def wait_for(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def elsewhere(lease: Lease) -> None:
    """Let a lease look as if its process were on another machine."""
    lease.holder = leases.Holder(lease.holder.run, "node-7", "another kernel", (12, 34), lease.holder.since)


def test_a_second_driver_is_refused_while_the_first_renews_its_lease_and_admitted_afterwards(
    quick: None, tmp_path: Path
) -> None:
    output = Folder(str(tmp_path / "out"))
    first = Lease(output)
    elsewhere(first)
    first.take()
    time.sleep(2.2)  # longer than a lease lives that is not renewed
    with pytest.raises(
        OutputInUseError, match=r"another start is at work on .*: process 12 on node-7, since"
    ):
        Lease(output).take()
    first.release()
    with held(output):
        assert (tmp_path / "out" / LEASE).exists()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lease_that_is_not_renewed_is_lost_and_its_driver_ends_when_it_comes_back(
    quick: None, tmp_path: Path
) -> None:
    output, lost = Folder(str(tmp_path / "out")), list[OvssError]()
    first = Lease(output, lost.append)
    elsewhere(first)
    first._write()  # and then it hangs
    begun = time.monotonic()
    second = Lease(output)
    second.take()
    assert time.monotonic() - begun < 60.0
    first._thread.start()
    first._thread.join(60.0)
    assert isinstance(lost[0], LeaseLostError)
    first.release()
    assert json.loads((tmp_path / "out" / LEASE).read_text())["run"] == second.holder.run
    second.release()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="sees processes in Linux's /proc")
def test_a_driver_of_this_machine_that_was_killed_has_lost_its_lease_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pipelines.run.lease import Lease; from pipelines.storage import Folder; "
        "Lease(Folder(sys.argv[1])).take(); os.kill(os.getpid(), 9)"
    )
    output = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", code, str(output)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (output / LEASE).exists()
    begun = time.monotonic()
    with held(Folder(str(output))):
        assert time.monotonic() - begun < 20.0


def test_an_end_that_is_asked_for_stops_admission_and_then_interrupts() -> None:
    stop, told = Stop(60.0), threading.Event()
    assert ask_to_stop(signal.SIGTERM) is None  # nothing is at work
    with stop.obeyed(told.set):
        assert ask_to_stop(signal.SIGTERM) == 60.0
        assert told.wait(60.0)
    with pytest.raises(Interrupted) as error:
        stop.end()
    assert error.value.number == signal.SIGTERM


def test_the_thread_that_waits_for_an_end_lets_go_of_the_run_with_the_block() -> None:
    class Execution:
        def stop(self) -> None: ...

    stop = Stop(60.0)
    for _ in range(2):  # a run has several rounds
        execution = Execution()
        held_by_thread = weakref.ref(execution)
        with stop.obeyed(execution.stop):
            del execution
        assert held_by_thread() is None  # later, Ray may have ended, and with a handle of its own the process


def test_an_end_that_is_asked_for_between_two_rounds_is_obeyed_by_the_next() -> None:
    stop, told = Stop(60.0), threading.Event()
    stop.fail(OvssError("the lease is lost"))
    with stop.obeyed(told.set):
        assert told.wait(60.0)


def test_an_end_that_takes_longer_than_its_grace_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.reporting import reported

    @reported
    def main(arguments: object) -> int:
        with Stop(0.3).obeyed(lambda: None):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(200.0)
        return 0

    begun = time.monotonic()
    assert main(None) == 143
    assert time.monotonic() - begun < 100.0


@pytest.mark.slow
def test_sigterm_stores_what_is_finished_and_a_second_driver_is_refused(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output = image_folder(700), tmp_path / "out"
    run = label(images, output)
    wait_for(lambda: (output / LEASE).exists())
    with pytest.raises(OutputInUseError):
        Lease(Folder(str(output))).take()
    wait_for(lambda: any(output.glob("_fragments/*/*.labels.pq")))
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 143, said
    assert "ovss: SIGTERM: storing what is finished, within 25 s; a second signal ends at once" in said
    assert said.splitlines()[-1] == "ovss: ended by SIGTERM; the same command goes on where it stopped"
    assert not (output / LEASE).exists()
    files = [*output.glob("_fragments/*/*.labels.pq"), *output.glob("_parts/*.pq")]
    stored = [image_id for file in files for image_id in pq.read_table(file)["image_id"].to_pylist()]
    assert 0 < len(set(stored)) < 700
