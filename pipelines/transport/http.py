"""Whole files over HTTP, with limits that hold whatever the server does.

fsspec's own client asks for the length first, seeks where a stream cannot, reads a body without a length to its
end, and has no limit for a server that is silent or trickles.
"""

import asyncio
import atexit
import os
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from importlib import metadata
from threading import Thread

import aiohttp
from yarl import URL

from ovss_core.errors import ImageError, OvssError
from pipelines.transport.addresses import encode_http, host_of
from pipelines.transport.causes import TransferError, early_end, explain, http_error, is_own_mistake
from pipelines.transport.limits import check_size

_SILENCE = 2  # a server that is silent for this part of the limit gets another try
_GRACE_S = 5.0


class HttpClient:
    """Fetches files for any number of threads; one event loop in a thread of its own does the work."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True, name="http").start()
        self._session = asyncio.run_coroutine_threadsafe(_open_session(), self._loop).result()
        atexit.register(self._close)  # aiohttp complains about connections that are left open

    def _close(self) -> None:
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result(_GRACE_S)

    def get(self, address: str, max_bytes: int, limit_s: float) -> bytes:
        """Return the body of an address, its content encoding undone.

        Args:
            max_bytes: A larger body is refused: by its length where there is one, else as soon as it is too long.
            limit_s: Seconds from the look-up of the name to the last byte.

        Raises:
            TransferError: Anything that went wrong on the way.
            ImageError: The body is larger than `max_bytes`.
        """
        job = asyncio.run_coroutine_threadsafe(self._get(address, max_bytes, limit_s), self._loop)
        try:
            return job.result(limit_s + _GRACE_S)
        except FutureTimeoutError:
            job.cancel()
            host = host_of(address)
            raise TransferError(f"no answer from {host} in time", "TimeoutError", transient=True) from None

    async def _get(self, address: str, max_bytes: int, limit_s: float) -> bytes:
        transfer = _Transfer(address, max_bytes)
        pause = max(limit_s / _SILENCE, 0.01)
        timeout = aiohttp.ClientTimeout(total=limit_s, sock_connect=pause, sock_read=pause)
        try:
            url = URL(encode_http(address), encoded=True)
            async with self._session.get(url, timeout=timeout) as response:
                transfer.check_head(response)
                async for chunk in response.content.iter_any():
                    transfer.take(chunk)
        except OvssError:
            raise
        except Exception as error:
            if is_own_mistake(error):
                raise
            raise transfer.explain(error) from error
        return bytes(transfer.body)


class _Transfer:
    """One body on its way."""

    def __init__(self, address: str, max_bytes: int) -> None:
        self.body = bytearray()
        self._address, self._host = address, host_of(address)
        self._max_bytes = max_bytes
        self._length: int | None = None
        self._start = time.monotonic()

    def check_head(self, response: aiohttp.ClientResponse) -> None:
        if not 200 <= response.status < 300:
            hint = ""
            if response.status == HTTPStatus.NOT_FOUND and "#" in self._address:
                hint = " (what follows # was not sent; write %23 where it belongs to the name)"
            raise http_error(
                response.status, self._host, hint, _retry_after(response.headers.get("Retry-After"))
            )
        length = response.content_length
        check_size(length or 0, self._max_bytes)
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        self._length = None if encoded else length

    def take(self, chunk: bytes) -> None:
        self.body += chunk
        if len(self.body) > self._max_bytes:
            raise ImageError(f"the server sends more than max_bytes ({self._max_bytes:,})")

    def explain(self, error: Exception) -> TransferError:
        if isinstance(error, TimeoutError):
            return self._timeout()
        if isinstance(error, aiohttp.TooManyRedirects):
            return TransferError(f"{self._host} redirects without end", "TooManyRedirects")
        if isinstance(error, aiohttp.ClientResponseError):  # statuses are looked at by ourselves
            return TransferError(f"the answer from {self._host} is no HTTP that can be read", "HTTPError")
        if isinstance(error, aiohttp.ServerDisconnectedError):
            reason = f"{self._host} closed the connection without an answer"
            return TransferError(reason, "ConnectionError", transient=True)
        if isinstance(error, aiohttp.ClientPayloadError):
            if "ContentEncoding" in type(error.__cause__).__name__ or "content-encoding" in str(error):
                reason = f"the body from {self._host} is not encoded as its head says"
                return TransferError(reason, "ContentEncodingError")
            return early_end(self._host, len(self.body), self._length)
        return explain(error, self._address)

    def _timeout(self) -> TransferError:
        seconds = f"{time.monotonic() - self._start:.0f} s"
        if self.body:
            reason = f"{self._host} sent only {len(self.body):,} bytes in {seconds}"
        else:
            reason = f"no answer from {self._host} within {seconds}"
        return TransferError(reason, "TimeoutError", transient=True)


async def _open_session() -> aiohttp.ClientSession:
    agent = f"ovss/{metadata.version('ovss')}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": agent, "Accept": "image/*,*/*;q=0.8", "Accept-Encoding": "identity"},
        trust_env=True,  # the proxies of the environment
    )


def _retry_after(value: str | None) -> float | None:
    """Read seconds, or a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def http_client() -> HttpClient:
    """Return the client of this process; threads of a parent do not live on in a forked child."""
    return _client_of(os.getpid())


@lru_cache(maxsize=1)
def _client_of(process: int) -> HttpClient:
    return HttpClient()
