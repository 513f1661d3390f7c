"""The displays: lines for people, lines of JSON, a live one on a terminal, and the log file in the output."""

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pipelines.run.events import Display, DisplayOptions, Event

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pipelines.storage import Folder

LINE_INTERVAL_S = 10.0
_LOG_INTERVAL_S = 60.0
_STORE_INTERVAL_S = 30.0
_STORE_PATIENCE_S = 10.0
_QUICK_S = 0.4
_REFRESHES_A_SECOND = 4
_REASONS = 8


def displays_of(options: DisplayOptions) -> list[Display]:
    """Return the displays that a command's options ask for: one on standard error, and the log file."""
    stream, own = _own_stderr()
    form = json_line if options.log_format == "json" else text_line
    log = RunLog(
        json_line if options.log_format == "json" else _dated_lines, max(_LOG_INTERVAL_S, options.progress_s)
    )
    if form is text_line and not options.plain and stream.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console

        return [Live(Console(file=stream), own), log]
    return [Lines(lambda line: print(line, file=stream, flush=True), form, options.progress_s, own), log]


def _own_stderr() -> tuple[TextIO, TextIO | None]:
    """Return standard error as a stream that others' redirections of file descriptor 2 do not reach, if that can be.

    The second value is what to close.
    """
    try:
        own = os.fdopen(os.dup(2), "w", errors="backslashreplace") if sys.stderr.fileno() == 2 else None
    except (OSError, ValueError, AttributeError):  # something else than a file, as in a notebook
        own = None
    return own or sys.stderr, own


def text_line(event: Event) -> str:
    """Return an event as a line for people."""
    return event.text if event.name == "log" else f"ovss: {event.text}"


def json_line(event: Event) -> str:
    """Return an event as a JSON object on one line: ``ts``, ``event``, ``text``, and what else is known by name."""
    phase = {} if event.phase == "once" else {"phase": event.phase}
    values = {"ts": _stamp(event), "event": event.name, **phase, "text": event.text, **event.fields}
    return json.dumps(values, ensure_ascii=True)


def _stamp(event: Event) -> str:
    return datetime.fromtimestamp(event.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Lines:
    """Writes events as lines: what lasts when it begins, every `interval_s` seconds, and when it ends.

    Args:
        write: Takes a line.
        form: Turns an event into one.
        interval_s: Seconds between lines of one thing that lasts.
        closing: A stream that ends with the display.
        quick_s: Steps that are over before this are passed over; only people want that.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        form: Callable[[Event], str],
        interval_s: float = LINE_INTERVAL_S,
        closing: TextIO | None = None,
        quick_s: float | None = None,
    ) -> None:
        self._write, self._form, self._interval, self._closing = write, form, interval_s, closing
        self._quick = quick_s if quick_s is not None else (_QUICK_S if form is text_line else 0.0)
        self._held: dict[str, Event] = {}
        self._last: dict[str, float] = {}

    def show(self, event: Event) -> None:
        """Write the event, if it is time."""
        if event.phase == "begin" and event.name == "step" and self._quick:
            self._held[event.key] = event
        elif event.phase == "still":
            held = self._held.get(event.key)
            if held and event.time - held.time >= self._quick:
                self._put(self._held.pop(event.key), event.time)
            elif not held and event.time - self._last.get(event.key, 0.0) >= self._interval:
                self._put(event, event.time)
        elif self._held.pop(event.key, None) is None:  # else it took no time
            self._put(event, event.time)
            if event.phase == "end":
                self._last.pop(event.key, None)

    def _put(self, event: Event, now: float) -> None:
        if event.phase != "once":
            self._last[event.key] = now
        self._write(self._form(event))

    def log_into(self, output: "Folder") -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close the stream, where it is the display's own."""
        if self._closing:
            self._closing.close()


class Live:
    """Shows on a terminal what is going on, below the lines of what is over.

    Args:
        console: The terminal.
        closing: A stream that ends with the display.
        refreshed: Whether a thread moves the display along; without, `show` alone does.
    """

    def __init__(self, console: "Console", closing: TextIO | None = None, refreshed: bool = True) -> None:
        from rich.live import Live as RichLive
        from rich.spinner import Spinner

        self._console, self._closing = console, closing
        self._open: dict[str, Event] = {}
        self._begun: dict[str, float] = {}
        self._spinner = Spinner("dots")
        self._live = RichLive(
            get_renderable=self.picture,
            console=console,
            auto_refresh=refreshed,
            refresh_per_second=_REFRESHES_A_SECOND,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # else it would take what goes into a file or a pipe
        )

    def show(self, event: Event) -> None:
        """Take an event into the picture, or print it above."""
        if event.phase in ("begin", "still"):
            self._begun.setdefault(event.key, event.time)
            self._open[event.key] = event
            self._live.start()
            return
        if event.phase == "end":
            self._open.pop(event.key, None)
            took = event.time - self._begun.pop(event.key, event.time)
            if not self._open:
                self._live.stop()
            if event.name == "step" and took < _QUICK_S:
                return
        self._print(event)

    def _print(self, event: Event) -> None:
        from rich.text import Text

        mark, style = _MARKS.get(event.name, ("✓", "green")) if event.phase == "once" else ("✓", "green")
        lines = [Text.assemble((mark, style), " ", event.text)]
        if event.name == "images":
            lines += [Text(f"    {line}", "red") for line in _reasons(event)]
        for line in lines:
            self._console.print(line, highlight=False, soft_wrap=True)

    def picture(self) -> "RenderableType":
        """Return what is going on: a line a step, a bar for images, and why images failed."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        rows: list[RenderableType] = []
        for event in list(self._open.values()):
            if event.name == "images":
                rows += [*self._bar(event), *(Text(f"    {line}", "red") for line in _reasons(event))]
            else:
                row = Table.grid(padding=(0, 1))
                row.add_row(self._spinner, Text(event.text, overflow="ellipsis", no_wrap=True))
                rows.append(row)
        return Group(*rows)

    def _bar(self, event: Event) -> "list[RenderableType]":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        fields = event.fields
        total = fields["total"] if fields["final"] and fields["total"] else None
        width = max(8, min(30, self._console.width - 1 - Text(event.text).cell_len))
        bar = ProgressBar(total=total, completed=fields["done"], width=width, pulse=total is None)
        row = Table.grid(padding=(0, 1))
        row.add_row(bar, Text(event.text))  # the failures stand at its end, and must not be cut off
        return [row]

    def log_into(self, output: "Folder") -> None:
        """Do nothing."""

    def close(self) -> None:
        """Take the picture away, and show the cursor again."""
        self._open.clear()
        self._live.stop()
        if self._closing:
            self._closing.close()


_MARKS: Mapping[str, tuple[str, str]] = {
    "listed": ("·", "dim"),
    "note": ("·", "dim"),
    "log": ("!", "yellow"),
    "error": ("✗", "red"),
    "interrupted": ("✗", "yellow"),
}


def _reasons(event: Event) -> list[str]:
    counts = sorted(event.fields["failures"].items(), key=lambda entry: (-entry[1], entry[0]))
    lines = [f"{count:,} x {reason}" for reason, count in counts[:_REASONS]]
    rest = sum(count for _, count in counts[_REASONS:])
    return [*lines, f"{rest:,} of other reasons"] if rest else lines


def _dated_lines(event: Event) -> str:
    return f"{_stamp(event)} {text_line(event)}"


@dataclass
class _Place:
    """Where a log is written: lines are added to a local file, and a whole object is stored anew now and then."""

    output: "Folder"
    name: str
    local: Path | None
    stored: float = 0.0
    writer: threading.Thread | None = None


class RunLog:
    """Keeps what is said in a file of the output, one a start; until the output is known, in memory.

    Args:
        form: Turns an event into a line.
        interval_s: Seconds between lines of one thing that lasts.
    """

    def __init__(self, form: Callable[[Event], str], interval_s: float = _LOG_INTERVAL_S) -> None:
        self._suffix = "jsonl" if form is json_line else "log"
        self._lines: list[str] = []
        self._new: list[str] = []
        self._place: _Place | None = None
        self._shown = Lines(self._new.append, form, interval_s, quick_s=0.0)

    def show(self, event: Event) -> None:
        """Write the event, if it is time."""
        self._shown.show(event)
        self._store(event.time)

    def log_into(self, output: "Folder") -> None:
        """Begin the file, with what was said before; a second call, of another job in one command, begins another."""
        self._store(float("inf"))
        from pipelines.run.record import LOGS  # brings Arrow, which a command's first words do not wait for

        name = f"{LOGS}/{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.{self._suffix}"
        local = Path(output.path) / name if output.is_local else None
        if local:
            local.parent.mkdir(parents=True, exist_ok=True)
        self._place = _Place(output, name, local)
        self._store(float("inf"))

    def close(self) -> None:
        """Write what is left; without an output there is nothing to write to."""
        self._store(float("inf"))
        self._place = None

    def _store(self, now: float) -> None:
        place = self._place
        if place is None or not self._new:
            return
        if place.local:
            with place.local.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{line}\n" for line in self._new)
            self._new.clear()
            return
        last = now == float("inf")
        if place.writer and last:
            place.writer.join(_STORE_PATIENCE_S)
        if now - place.stored < _STORE_INTERVAL_S or (place.writer and place.writer.is_alive()):
            return
        self._lines += self._new
        self._new.clear()
        place.stored = place.stored if last else now
        data = "".join(f"{line}\n" for line in self._lines).encode("utf-8", "backslashreplace")
        place.writer = threading.Thread(target=_write, args=(place, data), daemon=True)
        place.writer.start()  # a store that is away for a moment must not stop what is said
        if last:
            place.writer.join(_STORE_PATIENCE_S)


def _write(place: _Place, data: bytes) -> None:
    with suppress(OSError):
        place.output.write(place.name, data)
