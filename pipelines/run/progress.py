"""What the terminal says: the step a run is at, then images of all images; a bar, or lines in a log file."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

LINE_INTERVAL_S = 10.0
_TICK_S = 0.5
_QUICK_S = 0.5
"""A step that is over before this is not worth a line."""


@contextmanager
def announced(
    step: str, interval_s: float = LINE_INTERVAL_S, stream: TextIO | None = None
) -> Iterator[Callable[[str], None]]:
    """Say what is being done while it is done, and how long it takes; what takes no time is passed over.

    Args:
        step: What is done, such as "listing photos/".
        interval_s: Seconds between lines where there is no terminal.
        stream: Where to write; standard error by default.

    Yields:
        A function that takes what more there is to say, such as "1,200 images so far"; it is shown with the next line.
    """
    shown = _Step(step, stream or sys.stderr)
    stop = threading.Event()
    thread = threading.Thread(target=shown.repeat, args=(stop, interval_s), daemon=True)
    thread.start()
    try:
        yield shown.tell
    finally:
        stop.set()
        thread.join()
        shown.end()


def say(line: str) -> None:
    """Write a line to standard error; a terminal that is gone must not end the run."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class _Step:
    def __init__(self, text: str, stream: TextIO) -> None:
        self._text, self._detail, self._stream = text, "", stream
        self._start, self._shown = time.monotonic(), False
        self._console = Console(file=stream) if stream.isatty() else None
        self._status = self._console.status(escape(f"{text} ...")) if self._console else None

    def tell(self, detail: str) -> None:
        self._detail = f": {detail}" if detail else ""

    def repeat(self, stop: threading.Event, interval_s: float) -> None:
        if stop.wait(_QUICK_S):
            return
        self._shown = True
        self._write(f"{self._text} ...")
        while not stop.wait(_TICK_S if self._status else interval_s):
            self._write(self._line())

    def end(self) -> None:
        with suppress(OSError):
            if self._shown and self._status and self._console:
                self._status.stop()
                self._console.print(self._line(), markup=False, highlight=False)

    def _write(self, line: str) -> None:
        with suppress(OSError):  # a terminal that is gone must not end the run
            if self._status:
                self._status.update(escape(line))
                self._status.start()
            else:
                print(line, file=self._stream, flush=True)

    def _line(self) -> str:
        return f"{self._text}{self._detail} ({time.monotonic() - self._start:.0f} s)"


class ProgressReport:
    """Show images done of total, images a second, time left and failures; use as a context manager.

    Args:
        total: Images of the run, as far as they are known.
        interval_s: Seconds between lines where there is no terminal.
        stream: Where to write; standard error by default.
        final: False while images are still being listed, so that the total may grow.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        failed: int = 0,
        interval_s: float = LINE_INTERVAL_S,
        stream: TextIO | None = None,
        final: bool = True,
    ) -> None:
        self.total = total
        self.done = done
        self.failed = failed
        self._before = done
        self._reached = 0
        self._final = final
        self._start = time.monotonic()
        self._interval = interval_s
        self._stream = stream or sys.stderr
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}")
            self._bar = Progress(*columns, console=Console(file=self._stream))
            self._bar.add_task("images", total=self._bar_total, completed=self.shown, state=self.line())
            self._bar.start()
        else:
            self._show()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._reached = 0  # the last line says what is stored
        self._show()
        if self._bar:
            with suppress(OSError):
                self._bar.stop()

    def advance(self, labelled: int, failed: int) -> None:
        """Count images that are stored."""
        self.done += labelled + failed
        self.failed += failed

    def reach(self, images: int) -> None:
        """Say how many images the last stage has finished in this start, stored or not; it never goes back."""
        self._reached = max(self._reached, images)

    def expect(self, total: int, final: bool) -> None:
        """Set the number of images of the run.

        Args:
            total: Images that are known of.
            final: Whether these are all; while they are not, no share and no time left are shown.
        """
        self.total, self._final = total, final

    def resume(self, done: int, failed: int) -> None:
        """Take over what earlier runs finished; it counts as done, not towards the speed."""
        self.done = self._before = done
        self.failed = failed

    @property
    def fresh(self) -> int:
        """Images that this run stored."""
        return self.done - self._before

    @property
    def shown(self) -> int:
        """Images that are stored, or finished and about to be; never more than the total."""
        return max(self.done, min(self._before + self._reached, self.total))

    @property
    def images_per_second(self) -> float:
        """Speed since the start of this run, start-up included."""
        return (self.shown - self._before) / max(time.monotonic() - self._start, 1e-9)

    def line(self) -> str:
        """Return the state as one line."""
        shown, failed = self.shown, f"{self.failed:,} failed"
        if self._final:
            share = int(100 * shown / self.total) if self.total else 100
            count = f"{shown:,} of {self.total:,} images ({share} %)"
        else:
            count = f"{shown:,} of at least {self.total:,} images"
        if shown == self._before and shown < self.total:
            waited = f"{time.monotonic() - self._start:.0f} s"
            return f"{count}, waiting for the first ones ({waited}), {failed}"
        speed = self.images_per_second
        known = self._final and (speed > 0 or shown >= self.total)
        left = duration((self.total - shown) / max(speed, 1e-9)) if known else "unknown"
        return f"{count}, {speed:.2f} images/s, time left {left}, {failed}"

    @property
    def _bar_total(self) -> int | None:
        return self.total if self._final else None

    def _tick(self) -> None:
        while not self._stop.wait(_TICK_S if self._bar else self._interval):
            self._show()

    def _show(self) -> None:
        with suppress(OSError):  # a terminal that is gone must not end the run
            if self._bar:
                task = self._bar.task_ids[0]
                self._bar.update(task, total=self._bar_total, completed=self.shown, state=self.line())
            else:
                print(self.line(), file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
