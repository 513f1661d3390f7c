"""What lasts while a run works, as events: the step it is at, and images of all images."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from types import TracebackType
from typing import Self

from pipelines.run.events import Event, Phase, emit

_TICK_S = 0.5
_NAMED_REASONS = 3
_numbers = count()


@contextmanager
def announced(step: str) -> Iterator[Callable[[str], None]]:
    """Say what is being done while it is done, and how long it takes.

    Args:
        step: What is done, such as "listing photos/".

    Yields:
        A function that takes what more there is to say, such as "1,200 images so far"; it is shown from the next event on.
    """
    start, key, told = time.monotonic(), f"step {next(_numbers)}", [""]

    def event(phase: Phase) -> None:
        seconds = time.monotonic() - start
        text = f"{step} ..." if phase == "begin" else f"{step}{told[0] and ': '}{told[0]} ({seconds:.0f} s)"
        emit(Event("step", text, {"step": step, "detail": told[0], "seconds": round(seconds, 3)}, phase, key))

    def tell(detail: str) -> None:
        told[0] = detail

    with _repeated(event):
        yield tell


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run something in a thread beside the block; it ends when the event that it takes is set, and is waited for."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _repeated(event: Callable[[Phase], None]) -> Iterator[None]:
    """Emit the beginning, what goes on twice a second, and the end."""

    def repeat(stop: threading.Event) -> None:
        while not stop.wait(_TICK_S):
            event("still")

    event("begin")
    try:
        with beside(repeat):
            yield
    finally:
        event("end")


class ProgressReport:
    """Emits images done of total, images a second, time left and failures by reason; use as a context manager.

    Args:
        total: Images of the run, as far as they are known.
        done: Images that earlier runs finished.
        failed: How many of those failed.
        final: False while images are still being listed, so that the total may grow.
        waiting: What is done until the first image is finished.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        failed: int = 0,
        final: bool = True,
        waiting: str = "waiting for the first ones",
    ) -> None:
        self.total = total
        self.done = done
        self.failed = failed
        self.reasons: Counter[str] = Counter()
        self._before = done
        self._reached = 0
        self._final = final
        self._waiting = waiting
        self._start = time.monotonic()
        self._key = f"images {next(_numbers)}"
        self._repeated = _repeated(self._emit)

    def __enter__(self) -> Self:
        self._repeated.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reached = 0  # the last line says what is stored
        self._repeated.__exit__(kind, error, trace)

    def advance(self, labelled: int, failed: int, reasons: Mapping[str, int] | None = None) -> None:
        """Count images that are stored.

        Args:
            reasons: How many failed for which reason.
        """
        self.done += labelled + failed
        self.failed += failed
        self.reasons.update(reasons or {})

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

    @property
    def seconds_left(self) -> float | None:
        """Time left at this speed; None where that cannot be known yet."""
        left, speed = self.total - self.shown, self.images_per_second
        if not self._final or (left > 0 and speed <= 0):
            return None
        return left / max(speed, 1e-9)

    def line(self) -> str:
        """Return the state as one line."""
        shown = self.shown
        if self._final:
            share = int(100 * shown / self.total) if self.total else 100
            counted = f"{shown:,} of {self.total:,} images ({share} %)"
        else:
            counted = f"{shown:,} of at least {self.total:,} images"
        if shown == self._before and shown < self.total:
            waited = f"{time.monotonic() - self._start:.0f} s"
            return f"{counted}, {self._waiting} ({waited}), {self._failures()}"
        left = self.seconds_left
        told = "unknown" if left is None else duration(left)
        return f"{counted}, {self.images_per_second:.2f} images/s, time left {told}, {self._failures()}"

    def _failures(self) -> str:
        most = ", ".join(
            f"{number:,} {reason}" for reason, number in self.reasons.most_common(_NAMED_REASONS)
        )
        more = ", ..." if len(self.reasons) > _NAMED_REASONS else ""
        return f"{self.failed:,} failed" + (f" ({most}{more})" if most else "")

    def _emit(self, phase: Phase) -> None:
        left = self.seconds_left
        fields = {
            "done": self.shown,
            "total": self.total,
            "final": self._final,
            "failed": self.failed,
            "failures": dict(self.reasons),
            "images_per_second": round(self.images_per_second, 3),
            "seconds_left": None if left is None else round(left, 1),
        }
        emit(Event("images", self.line(), fields, phase, self._key))


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
