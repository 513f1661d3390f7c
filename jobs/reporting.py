"""What every command shares: how errors and signals become one line and an exit status."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import NoReturn

from ovss_core.errors import ClusterError, ConfigError, ModelError, OvssError, StorageError, WeightsError
from pipelines.run.events import EventHandler, forget_display, say
from pipelines.run.stopping import Interrupted, ask_to_stop, is_overdue

USAGE = 2
FAILED = 1
_SIGNALLED = 128
_BEFORE_START = (ConfigError, ModelError, WeightsError, StorageError, ClusterError)
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
Arguments = Sequence[str] | None
Main = Callable[..., int]


def reported(main: Main) -> Main:
    """Turn errors into one line on standard error and an exit status.

    0: done, even if some images failed (they are counted and listed). 2: the command cannot work as it stands;
    nothing was started. 1: the run stopped, or its counts do not add up. 129, 130, 143: SIGHUP, Ctrl-C or SIGTERM
    ended it; a second one ends it at once.
    """

    @wraps(main)
    def run(arguments: Arguments = None) -> int:
        logging.basicConfig(level=logging.WARNING, handlers=[EventHandler()])
        try:
            with _ending_signals():
                return main(arguments)
        except _BEFORE_START as error:
            return _say(f"error: {error}", USAGE)
        except OvssError as error:
            return _say(f"error: {error}", FAILED)
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            name = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
            return _say(
                f"{name}; the same command goes on where it stopped", _SIGNALLED + number, "interrupted"
            )
        except BrokenPipeError:  # whoever read our output has gone, as in `ovss ... | head`
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (Python flushes it once more when it exits)
            return _SIGNALLED + signal.SIGPIPE
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            reason = error.strerror or str(error).strip().partition("\n")[0] or type(error).__name__
            return _say(f"error: {place}{reason}; put that right, and the same command goes on", FAILED)
        finally:
            forget_display()

    return run


def _say(line: str, status: int, name: str = "error") -> int:
    say(line, name)
    return status


@contextmanager
def _ending_signals() -> Iterator[None]:
    """Let signals that ask for an end raise `Interrupted`; those that are ignored, as under nohup, stay ignored.

    A run that is at work stores what is finished when SIGTERM comes, and raises it then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def end(number: int, frame: FrameType | None) -> None:
        for other in taken:
            signal.signal(other, _end_at_once)
        grace = ask_to_stop(number) if number == signal.SIGTERM else None
        if grace is not None:
            told = f"SIGTERM: storing what is finished, within {grace:g} s; a second signal ends at once"
            _say(told, _SIGNALLED, "interrupted")
            return
        raise Interrupted(number)

    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is end:  # after a signal the process only has to end
                signal.signal(number, before[number])


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """End without cleaning up: what the first signal began takes too long. Ray's processes end with their parent."""
    if is_overdue():  # it is the run's own, whose time to store things is over
        raise Interrupted(number)
    forget_display()  # a terminal gets its cursor back
    os._exit(_SIGNALLED + number)
