"""Trying again what may pass, and never waiting longer than was allowed."""

import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from pipelines.transport.causes import TransferError

_LOG = logging.getLogger(__name__)
_TRIES = 6
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0
Value = TypeVar("Value")


def patiently(attempt: Callable[[float], Value], limit_s: float, announce: str = "") -> Value:
    """Call until it succeeds, at most six times, with waits that double and are spread at random.

    Args:
        attempt: Takes the seconds that are left; raises `TransferError`, of which the transient ones are tried again.
        limit_s: Seconds for everything, waits included. A server that asks for a longer wait is given up at once.
        announce: What is being done, for a warning before the first wait; "" waits without a word.

    Raises:
        TransferError: The last one, with the number of tries.
    """
    start = time.monotonic()
    for number in range(1, _TRIES + 1):
        try:
            return attempt(limit_s - (time.monotonic() - start))
        except TransferError as error:
            wait = _wait_s(number, error)
            left = limit_s - (time.monotonic() - start)
            if not error.transient or number == _TRIES or wait >= left:
                raise _last(error, number, time.monotonic() - start, wait) from error
            if announce and number == 1:
                _LOG.warning("%s: %s; trying again for up to %.0f s", announce, error, left)
        time.sleep(wait)
    raise AssertionError  # the last try returns or raises


def _wait_s(number: int, error: TransferError) -> float:
    wait: float = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (number - 1)) * random.uniform(0.5, 1.0)
    return max(wait, error.retry_after_s or 0.0)


def _last(error: TransferError, tries: int, seconds: float, wait: float) -> TransferError:
    told = str(error)
    if error.retry_after_s and wait >= error.retry_after_s and error.transient:
        told += f", which asks to wait {error.retry_after_s:,.0f} s"
    if tries > 1:
        told += f" ({tries} tries in {seconds:.0f} s)"
    return TransferError(told, error.error_type, error.transient, error.retry_after_s)


def within(limit_s: float, call: Callable[[], Value], what: str) -> Value:
    """Run a call that may never return; after so many seconds it is left behind in its thread.

    Libraries over object stores have no limit for a server that trickles, some none for one that is silent.

    Raises:
        TransferError: The call did not end in time.
    """
    outcome: Future[Value] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True, name=f"transfer {what}"[:60]).start()
    try:
        return outcome.result(max(limit_s, 0.001))
    except TimeoutError:
        if outcome.done():
            raise
    raise TransferError(f"{what} did not finish within {limit_s:.0f} s", "TimeoutError", transient=True)
