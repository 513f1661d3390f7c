"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

import sys
import threading
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class ProgressReport:
    """Show images done of total, images a second, time left and failures; use as a context manager.

    Args:
        total: Images of the run.
        interval_s: Seconds between lines where there is no terminal.
        stream: Where to write; standard error by default.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        failed: int = 0,
        interval_s: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        self.total = total
        self.done = 0
        self.failed = 0
        self._before = 0
        self._reached = 0
        self._final = True
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
            self._bar.add_task("images", total=self.total, completed=self.done, state=self.line())
            self._bar.start()
        else:
            print(self.line(), file=self._stream, flush=True)
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._show()
        if self._bar:
            self._bar.stop()

    def advance(self, labelled: int, failed: int) -> None:
        """Count images that are stored."""
        self.done += labelled + failed
        self.failed += failed

    def reach(self, images: int) -> None:
        """Say how many images the last stage has finished in this start, stored or not; it never goes back."""
        self._reached = max(self._reached, images)

    def expect(self, total: int, final: bool) -> None:
        """Set the number of images of the run as far as it is known; `final`: whether these are all."""
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
    def images_per_second(self) -> float:
        """Speed since the start of this run, start-up included."""
        return self.fresh / max(time.monotonic() - self._start, 1e-9)

    def line(self) -> str:
        """Return the state as one line."""
        speed = self.images_per_second
        left = duration((self.total - self.done) / speed) if speed > 0 else "unknown"
        share = 100 * self.done / self.total if self.total else 100
        return (
            f"{self.done:,} of {self.total:,} images ({share:.0f} %), {speed:.2f} images/s, time left {left}, "
            f"{self.failed:,} failed"
        )

    def _tick(self) -> None:
        while not self._stop.wait(0.5 if self._bar else self._interval):
            self._show()

    def _show(self) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=min(self.done, self.total), state=self.line())
        else:
            print(self.line(), file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
