"""How a run ends before it is done: in order, when it is asked to; nothing here imports Ray.

A node that is taken away is announced by SIGTERM. A run that accepts it admits no further image, stores what is
finished, and ends with `Interrupted`; where that takes longer than its grace, it ends without the rest.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

from ovss_core.errors import OvssError

_runs: list["Stop"] = []
"""What is at work in this process and can end in order, the innermost last."""


class Interrupted(KeyboardInterrupt):
    """A signal that asks the command to end: Ctrl-C, SIGTERM or SIGHUP.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """Whether a run is to end before it is done, and how.

    Args:
        grace_s: Seconds between the wish and the end; what is not stored by then is done again by the next start.
    """

    def __init__(self, grace_s: float = 25.0) -> None:
        self.grace_s = grace_s
        self._number: int | None = None
        self._error: OvssError | None = None
        self._asked = self._overdue = False
        self._wishes: SimpleQueue[None] = SimpleQueue()

    def ask(self, number: int) -> None:
        """Let the run end in order, as if the signal had come then."""
        self._number = number
        self._wish()

    def fail(self, error: OvssError) -> None:
        """Let the run end with an error as soon as it can."""
        self._error = self._error or error
        self._wish()

    def _wish(self) -> None:
        self._asked = True
        self._wishes.put(None)  # in a signal's handler: no lock that the interrupted code may hold

    def check(self) -> None:
        """Raise the error that ends the run, if there is one; called where nothing must be written any more."""
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """End the run if that was asked for: what is finished is stored now.

        Raises:
            Interrupted: By a signal.
            OvssError: By an error.
        """
        self.check()
        if self._number is not None:
            raise Interrupted(self._number)

    def take_overdue(self) -> bool:
        """Say once whether the grace is over."""
        overdue, self._overdue = self._overdue, False
        return overdue

    @contextmanager
    def obeyed(self, admit_no_more: Callable[[], None]) -> Iterator[None]:
        """Inside the block, take SIGTERM as a wish to end in order: call `admit_no_more`, and interrupt after the grace."""
        over = threading.Event()
        wishes = self._wishes = SimpleQueue()
        if self._asked:  # before this block
            wishes.put(None)

        def obey() -> None:
            wishes.get()
            if over.is_set():
                return
            deadline = time.monotonic() + self.grace_s
            with suppress(Exception):  # workers that cannot be told end with the grace
                admit_no_more()
            if not over.wait(max(0.0, deadline - time.monotonic())) and self._number is not None:
                self._overdue = True
                os.kill(os.getpid(), self._number)

        thread = threading.Thread(target=obey, daemon=True)
        thread.start()
        _runs.append(self)
        try:
            yield
        finally:
            _runs.remove(self)
            over.set()
            wishes.put(None)
            # it holds what `admit_no_more` belongs to: a handle of Ray's that is let go after Ray has ended ends the process
            thread.join(1.0)


def ask_to_stop(number: int) -> float | None:
    """Ask the run of this process to end in order; return its grace in seconds, or None where none can."""
    if not _runs:
        return None
    _runs[-1].ask(number)
    return _runs[-1].grace_s


def is_overdue() -> bool:
    """Say once whether the grace of a run that was asked to end is over."""
    return any(stop.take_overdue() for stop in _runs)
