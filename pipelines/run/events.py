"""What a command says while it works: one kind of event, and the displays that show it.

Whoever does something emits events (`pipelines.run.progress` has the two that last: steps, and images of all images);
what becomes of them is decided in one place, by the displays that the process has chosen. An event is shown or lost,
and never ends the work: a terminal may be gone, a disk full.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipelines.transport.addresses import ScrubbedFormatter, scrub

if TYPE_CHECKING:
    from pipelines.storage import Folder

Phase = Literal["begin", "still", "end", "once"]
LogFormat = Literal["text", "json"]
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Event:
    """Something that a command says.

    Attributes:
        name: Its kind: "step", "images", "listed", "note", "log", "error" or "interrupted".
        text: One line for people.
        fields: The same for programs, JSON-ready.
        phase: For what lasts, whether it begins, goes on or ends; "once" for the rest.
        key: Tells what lasts from others of its kind.
        time: When, in seconds since 1970.
    """

    name: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    phase: Phase = "once"
    key: str = ""
    time: float = field(default_factory=time.time)


class Display(Protocol):
    """Shows events, each as it sees fit; never called by two threads at once."""

    def show(self, event: Event) -> None:
        """Take an event."""

    def log_into(self, output: "Folder") -> None:
        """Learn where the run writes, once that is certain to be its own."""

    def close(self) -> None:
        """Show what is left, and give a terminal back as it was."""


class DisplayOptions(Protocol):
    """What of a command's options decides its display."""

    @property
    def progress_s(self) -> float:
        """Seconds between lines."""

    @property
    def plain(self) -> bool:
        """Lines on a terminal, too."""

    @property
    def log_format(self) -> LogFormat:
        """Whether lines are for people or for programs."""


_lock = threading.RLock()
_chosen: Sequence[Display] | None = None


def emit(event: Event) -> None:
    """Show an event on the displays that were chosen, or as a line on standard error."""
    if not _lock.acquire(timeout=_PATIENCE_S):  # a display hangs; the work must not
        return
    try:
        for display in _default() if _chosen is None else _chosen:
            with suppress(OSError, ValueError):  # a terminal that is gone, a stream that is closed
                display.show(event)
    finally:
        _lock.release()


def say(text: str, name: str = "note", **fields: Any) -> None:
    """Emit one line."""
    emit(Event(name, scrub(text), fields))


def log_into(output: "Folder") -> None:
    """Tell the displays where the run writes: its log begins there, with what was said before."""
    with _lock:
        for display in _chosen or ():
            with suppress(OSError, ValueError):
                display.log_into(output)


def choose_display(options: DisplayOptions) -> None:
    """Choose the process's displays by a command's options, until `forget_display`."""
    from pipelines.run.displays import displays_of

    global _chosen
    forget_display()
    _chosen = displays_of(options)


def forget_display() -> None:
    """Close the displays that were chosen; what is said from now on is lines on standard error."""
    global _chosen
    if not _lock.acquire(timeout=_PATIENCE_S):
        return
    try:
        closing, _chosen = _chosen, None
        for display in closing or ():
            with suppress(OSError, ValueError):
                display.close()
    finally:
        _lock.release()


@contextmanager
def displayed(options: DisplayOptions) -> Iterator[None]:
    """Choose displays for the block, for those who call a job from Python; a command's own choice stays."""
    if _chosen is not None:
        yield
        return
    choose_display(options)
    try:
        yield
    finally:
        forget_display()


@contextmanager
def shown_by(*displays: Display) -> Iterator[None]:
    """Show events on these displays inside the block, and nowhere else; on none, they are lost."""
    global _chosen
    before, _chosen = _chosen, displays
    try:
        yield
    finally:
        _chosen = before


class EventHandler(logging.Handler):
    """Emits log records as events, so that they do not run across a live display."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(ScrubbedFormatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Emit a record."""
        try:
            fields = {"level": record.levelname, "logger": record.name}
            emit(Event("log", self.format(record), fields))
        except Exception:
            self.handleError(record)


@cache
def _default() -> Sequence[Display]:
    from pipelines.run.displays import Lines, text_line

    return [Lines(lambda line: print(line, file=sys.stderr, flush=True), text_line)]
