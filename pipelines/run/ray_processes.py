"""The processes of a Ray that was started here: known by a mark, watched while they are needed, and ended with it.

Where one of Ray's two core processes of a machine dies, what uses it dies, too: after up to a minute, without a word,
and with helpers left running. Here that is one line and an end at once.
"""

import os
import re
import selectors
import signal
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from pipelines.run.events import forget_display, say

_MARK = "OVSS_STARTED_BY"
_GRACE_S = 2.0
_CORES = {b"gcs_server": "control service", b"raylet": "node service (raylet)"}
_AGENT = re.compile(rb"^ray::\w*Agent|/agent(/main)?\.py\0")


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """Let processes that are started inside the block, and theirs, carry a mark in their environment."""
    os.environ[_MARK] = mark
    try:
        yield
    finally:
        del os.environ[_MARK]


def end_leftovers(mark: str, grace_s: float = _GRACE_S) -> None:
    """End what carries the mark still: agents of a node that ended while they started would stay for a while.

    Args:
        grace_s: Seconds that it may take to end by itself.
    """
    begin, empty = time.monotonic(), 0
    while (
        empty < 2 and time.monotonic() < begin + 5 * _GRACE_S
    ):  # twice: a process that is just born shows no mark
        left = _marked_processes(mark)
        empty = 0 if left else empty + 1
        if time.monotonic() >= begin + grace_s:
            for process in left:
                with suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


def _marked_processes(mark: str) -> list[int]:
    found, wanted = [], f"{_MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):  # empty where there is no Linux
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


@contextmanager
def watched(mark: str) -> Iterator[None]:
    """End this process in one line, with status 1, when a core process that carries the mark, or its agent, ends inside."""
    with ExitStack() as files, selectors.DefaultSelector() as selector:
        cores = _cores(mark)
        for process, name in cores.items():
            with suppress(OSError):
                selector.register(files.enter_context(_process_file(process)), selectors.EVENT_READ, name)
        children = []
        for process in _children(cores):
            with suppress(OSError):
                children.append(files.enter_context(_process_file(process)))
                if _AGENT.search(Path(f"/proc/{process}/cmdline").read_bytes()):  # the raylet ends with it
                    selector.register(children[-1], selectors.EVENT_READ, "agent")
        stopped, stop = (files.enter_context(_open(file)) for file in os.pipe())
        selector.register(stopped, selectors.EVENT_READ)
        watcher = threading.Thread(target=_watch, args=(selector, children, mark), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            os.write(stop, b".")
            watcher.join()


def _cores(mark: str) -> dict[int, str]:
    """Return the core processes that carry a mark, and what users call them."""
    found = {}
    for process in _marked_processes(mark):
        with suppress(OSError):
            program = Path(f"/proc/{process}/cmdline").read_bytes().partition(b"\0")[0]
            if name := _CORES.get(program.rpartition(b"/")[2]):
                found[process] = name
    return found


def _children(parents: Collection[int]) -> list[int]:
    """Return the processes that others started: Ray's agents overwrite their environment, and with it the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
            if parent in parents:
                found.append(int(folder.name))
    return found


def _process_file(process: int) -> AbstractContextManager[int]:
    """Open a process, so that its end can be waited for and its number is nobody else's."""
    return _open(os.pidfd_open(process))


@contextmanager
def _open(file: int) -> Iterator[int]:
    try:
        yield file
    finally:
        os.close(file)


def _watch(selector: selectors.BaseSelector, children: Sequence[int], mark: str) -> None:
    ended = [key.data for key, _ in selector.select()]
    if None not in ended:  # else the block has ended
        _end_with(ended[0], children, mark)


def _end_with(name: str, children: Sequence[int], mark: str) -> NoReturn:
    """Say what has died and end; Ray's core would hang in its own shutdown, and no handler of Python's would run."""
    say(
        f"error: Ray's {name} has died (was it killed, or is memory short?); the same command goes on where it stopped",
        "error",
    )
    forget_display()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):  # Ray's own threads go on to print what they found of the dead
        os.dup2(nowhere, output)
    for child in children:  # agents would report to the dead for a minute
        with suppress(OSError):
            signal.pidfd_send_signal(child, signal.SIGKILL)
    end_leftovers(mark, grace_s=0.0)
    os._exit(1)
