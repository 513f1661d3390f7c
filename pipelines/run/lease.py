"""One driver an output: a small file that its driver renews every few seconds, and that a dead driver loses.

Whether a lease is still renewed is seen by watching it, never by comparing the clocks of two machines; its age is told by
the storage, which dates both the lease and a file that is written to compare. A driver of the same machine whose
process is gone loses its lease at once. Object stores cannot lock, so a driver also looks at the lease before each
renewal, and ends when it belongs to another.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ovss_core.errors import OvssError, StorageError
from pipelines.storage import Folder

LEASE = ".ovss_lease.json"
BEAT_S = 5.0
LOST_S = 40.0
"""A lease that is not renewed for so long is lost."""
_CLOCK = ".ovss_clock"
_LOG = logging.getLogger(__name__)


class OutputInUseError(StorageError):
    """Another driver is at work on the output."""


class LeaseLostError(OvssError):
    """Another driver took over the output, because this one did not renew its lease in time."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        run: Names the start.
        host: Name of the machine or container.
        scope: Kernel and process namespace: processes of one scope see each other's ids.
        process: The driver's id in that scope, with the moment it began (clock ticks since the machine did).
        since: When the lease was taken.
    """

    run: str
    host: str
    scope: str
    process: tuple[int, int]
    since: str

    @classmethod
    def here(cls) -> "Holder":
        """Describe this process."""
        process = os.getpid()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(uuid.uuid4().hex, socket.gethostname(), _scope(), (process, _began(process) or 0), now)

    @classmethod
    def of(cls, values: Any) -> "Holder | None":
        """Read what `asdict` gave; None for anything else."""
        try:
            process, began = values["process"]
            texts = [str(values[name]) for name in ("run", "host", "scope", "since")]
            return cls(texts[0], texts[1], texts[2], (int(process), int(began)), texts[3])
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to be gone; False where it cannot be seen from here."""
        process, began = self.process
        return bool(self.scope) and self.scope == _scope() and bool(began) and _began(process) != began


def _scope() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (no path, but what the link says)
    return ""


def _began(process: int) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(") ")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    return None


class Lease:
    """The lease of this driver on an output.

    Args:
        lost: Called once when another driver has it.
    """

    def __init__(self, output: Folder, lost: Callable[[OvssError], None] = lambda error: None) -> None:
        self.output, self.lost = output, lost
        self.holder = Holder.here()
        self._beat = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def take(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """Take the lease; where another driver has one, watch whether that still renews it.

        Args:
            tell: Takes what is being waited for.

        Raises:
            OutputInUseError: It does.
        """
        found, left = self._read(), LOST_S
        other, beat = found
        if other is not None and not other.is_dead:
            left -= self._age()
            end = time.monotonic() + left
            tell(f"held by a start of {other.since} on {other.host}; watching whether that still works")
            while time.monotonic() < end:
                time.sleep(min(1.0, max(0.0, end - time.monotonic())))
                now, later = self._read()
                if now is None:
                    break
                if (now.run, later) != (other.run, beat):
                    raise OutputInUseError(
                        f"another start is at work on {self.output.public_uri}: process {now.process[0]} on {now.host}, "
                        f"since {now.since}; wait for its end, or stop it"
                    )
        self._write()
        if (holder := self._read()[0]) is not None and holder.run != self.holder.run:
            raise OutputInUseError(
                f"another start has just taken {self.output.public_uri}; one of them is enough"
            )
        self._thread.start()

    def release(self) -> None:
        """Give the lease back, unless another driver has it."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(2 * BEAT_S)
        with suppress(OSError, OvssError):  # it is lost by itself soon
            holder, _ = self._read()
            if holder is not None and holder.run == self.holder.run:
                self.output.remove(LEASE)

    def _renew(self) -> None:
        pause = 1.0  # soon once: another driver may have written in the same moment
        while not self._over.wait(pause):
            pause = BEAT_S
            try:
                holder, _ = self._read()
                if holder is not None and holder.run != self.holder.run:
                    self.lost(
                        LeaseLostError(
                            f"the run stopped: a start of {holder.since} on {holder.host} took {self.output.public_uri} over, "
                            f"as this one could not renew its lease for {LOST_S:g} s"
                        )
                    )
                    return
                self._write()
            except (OSError, OvssError) as error:  # what needs the storage says so, too
                _LOG.warning("the lease on %s cannot be renewed now: %s", self.output.public_uri, error)

    def _write(self) -> None:
        self._beat += 1
        self.output.write(LEASE, json.dumps({**asdict(self.holder), "beat": self._beat}).encode())

    def _read(self) -> tuple[Holder | None, int]:
        try:
            values = json.loads(self.output.read(LEASE))
            return Holder.of(values), int(values["beat"])
        except FileNotFoundError:
            return None, 0
        except (KeyError, TypeError, ValueError):  # nobody that works wrote it
            return None, 0

    def _age(self) -> float:
        """Return the seconds since the lease was renewed, by the storage's own clock; 0 where it does not tell."""
        self.output.write(_CLOCK, b"")
        try:
            then, now = self.output.modified(LEASE), self.output.modified(_CLOCK)
        finally:
            self.output.remove(_CLOCK)
        return max(0.0, now - then) if then is not None and now is not None else 0.0


@contextmanager
def held(
    output: Folder,
    lost: Callable[[OvssError], None] = lambda error: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[Lease]:
    """Hold the lease on an output inside the block.

    Raises:
        OutputInUseError: Another driver holds it.
        StorageError: The output cannot be written.
    """
    lease = Lease(output, lost)
    try:
        lease.take(tell)
        yield lease
    finally:
        lease.release()
