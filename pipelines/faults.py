"""What happens when an image cannot be worked on: one failure with a reason, and its neighbors go on.

Faults of the data (`ImageError`) and of the moment (`RuntimeError`, which is what running out of memory is in
torch) end in failures; any other exception is a mistake in a program and leaves the stage, which ends the job.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

from ovss_core.errors import ImageError
from pipelines.storage import scrub
from pipelines.transport.causes import TransferError

MAX_DEATHS = 2
"""Workers that an image may end all by itself before it is set aside."""
_LOG = logging.getLogger(__name__)
_REASON_LENGTH = 500
_LOOKED_AT = 1 << 16
_ESCAPE = re.compile(r"\\x[0-9a-fA-F]{2}")
_ESCAPES = re.compile(r"(?:\\x[0-9a-fA-F]{2}[ -~]{0,3}?){4,}")
_UNREADABLE = re.compile("\N{REPLACEMENT CHARACTER}(?:.{0,3}\N{REPLACEMENT CHARACTER})+")
Item = TypeVar("Item")
Value = TypeVar("Value")


class Attempts(Protocol):
    """What a stage needs of a ledger."""

    def begin(self, stage: str, ids: Sequence[str]) -> dict[str, int]:
        """Note images as being worked on; return those already noted, with how often each died alone."""

    def begin_alone(self, stage: str, image_id: str) -> None:
        """Note that a suspect is now the only image its worker works on."""

    def end(self, stage: str, ids: Sequence[str]) -> None:
        """Strike images off."""

    def is_stopping(self) -> bool:
        """Say whether no further image is to be begun, because the run ends."""


@dataclass(frozen=True)
class Failure:
    """Why an image has no result.

    Attributes:
        stage: The stage that gave up.
        error_type: Class of the error that says most, or "WorkerCrash".
        reason: One line.
    """

    stage: str
    error_type: str
    reason: str

    @classmethod
    def of(cls, stage: str, error: BaseException) -> "Failure":
        """Describe an exception in one line, without secrets of addresses and without image data."""
        kind = error.error_type if isinstance(error, TransferError) else type(error).__name__
        return cls(stage, kind, clean_reason(str(error)) or type(error).__name__)

    def to_dict(self) -> dict[str, str]:
        """Return the value of the column ``failure``."""
        return asdict(self)


def clean_reason(text: str) -> str:
    """Make one readable line of an error's text: no bytes of a picture, no secret of an address, 500 characters."""
    line = next(iter(text.strip().splitlines()), "")[:_LOOKED_AT]
    line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
    line = _ESCAPES.sub(lambda found: f"[{len(_ESCAPE.findall(found[0]))} bytes]", line)
    line = scrub(_UNREADABLE.sub(lambda found: f"[{len(found[0])} bytes]", line))
    return line if len(line) <= _REASON_LENGTH else f"{line[: _REASON_LENGTH - 3]}..."


def process_all(
    stage: str,
    ids: Sequence[str],
    items: Sequence[Item],
    process: Callable[[Sequence[Item]], Sequence[Value | Failure]],
    ledger: Attempts | None = None,
) -> list[Value | Failure]:
    """Work on a batch so that each item ends in a value or a failure.

    Args:
        stage: Name for failures and the ledger.
        ids: Image ids, one an item.
        process: Takes items and returns one value or failure each; may raise `ImageError` or `RuntimeError`.
        ledger: Where attempts are noted; without one, an item that kills its worker is not set aside.

    Returns:
        One value or failure an item, in order.
    """
    if not items:
        return []
    suspects = ledger.begin(stage, ids) if ledger else {}
    outcomes: dict[int, Value | Failure] = {}
    together = [place for place, image_id in enumerate(ids) if image_id not in suspects]
    results = _halve_until_done(stage, [items[place] for place in together], process)
    outcomes.update(zip(together, results, strict=True))
    if ledger:
        ledger.end(stage, [ids[place] for place in together])
        for place, image_id in enumerate(ids):
            if image_id in suspects:
                outcomes[place] = _alone(stage, image_id, items[place], process, ledger, suspects[image_id])
    return [outcomes[place] for place in range(len(items))]


def process_sound(
    stage: str,
    ids: Sequence[str],
    items: Sequence[Item],
    failures: list[dict[str, str] | None],
    process: Callable[[Sequence[Item]], Sequence[Value | Failure]],
    ledger: Attempts | None = None,
) -> list[Value | None]:
    """Work on the rows of a batch that have not failed before; further arguments as in `process_all`.

    Args:
        failures: Value of the column ``failure``, one an item; takes those that come now.

    Returns:
        One value an item, in order; None where it has failed.
    """
    sound = [place for place, failure in enumerate(failures) if failure is None]
    outcomes = process_all(
        stage, [ids[place] for place in sound], [items[place] for place in sound], process, ledger
    )
    values: list[Value | None] = [None] * len(items)
    for place, outcome in zip(sound, outcomes, strict=True):
        if isinstance(outcome, Failure):
            failures[place] = outcome.to_dict()
        else:
            values[place] = outcome
    return values


def _alone(
    stage: str,
    image_id: str,
    item: Item,
    process: Callable[[Sequence[Item]], Sequence[Value | Failure]],
    ledger: Attempts,
    deaths: int,
) -> Value | Failure:
    if deaths >= MAX_DEATHS:  # stays in the ledger: its batch may come again, for another image's sake
        return Failure(
            stage, "WorkerCrash", f"the worker died {deaths} times while it worked on this image alone"
        )
    _LOG.warning("%s: %r was in a worker that died; trying it alone", stage, image_id)
    ledger.begin_alone(stage, image_id)
    [outcome] = _halve_until_done(stage, [item], process)
    ledger.end(stage, [image_id])
    return outcome


def _halve_until_done(
    stage: str, items: Sequence[Item], process: Callable[[Sequence[Item]], Sequence[Value | Failure]]
) -> list[Value | Failure]:
    if not items:
        return []
    try:
        return list(process(items))
    except (ImageError, MemoryError, RuntimeError) as error:
        if isinstance(error, NotImplementedError | RecursionError):
            raise
        if len(items) == 1:
            return [Failure.of(stage, error)]
        _LOG.warning("%s: %s on %d images; trying halves", stage, Failure.of(stage, error).reason, len(items))
    middle = len(items) // 2
    return [
        *_halve_until_done(stage, items[:middle], process),
        *_halve_until_done(stage, items[middle:], process),
    ]
