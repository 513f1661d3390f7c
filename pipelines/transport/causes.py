"""What went wrong on the way, in one line of words that help, and whether it may pass again.

Libraries raise what they like: aiohttp, botocore, pyarrow and fsspec share no base class, and pyarrow keeps the
status inside its text. A fault is therefore known by where it was raised (`blamed_on`, held narrowly around a
library's call), not by its type; types, numbers and texts only decide how it is told and whether it is tried again.
"""

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import IncompleteRead
from typing import Any
from urllib.error import HTTPError

from ovss_core.errors import OvssError, StorageError
from pipelines.transport.addresses import host_of, redact, scrub

_LENGTH = 400
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529, 598, 599})
_DENIED, _GONE = frozenset({401, 403, 407, 451}), frozenset({404, 410})
_PASSING_ERRNO = frozenset(
    {
        *(
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.ECONNABORTED,
            errno.EPIPE,
            errno.ETIMEDOUT,
            errno.EAGAIN,
        ),
        *(
            errno.EHOSTUNREACH,
            errno.ENETUNREACH,
            errno.ENETDOWN,
            errno.EHOSTDOWN,
            errno.ENOTCONN,
            errno.EINTR,
        ),
        *(errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EBUSY),
    }
)
_AWS = re.compile(
    r"AWS Error (?P<name>[A-Z_]+)(?: \(HTTP status (?P<status>\d+)\))? during (?P<operation>\w+) operation: (?P<text>.*)",
    re.DOTALL,
)
_PASSING_AWS = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|REQUEST_EXPIRED"
)
_CURL = re.compile(r"curlCode: (\d+)")
_CURL_REASONS = {
    6: "the name of {host} cannot be resolved; is this machine online?",
    7: "connection refused by {host}",
    18: "{host} ended the transfer early",
    28: "no answer from {host} in time",
    35: "no TLS connection with {host}",
    52: "{host} closed the connection without an answer",
    56: "connection reset by {host}",
    60: "the certificate of {host} is not accepted",
}
_CURL_OF_GOOGLE = re.compile(r"CURL error \[(\d+)\]=?([^{]*?)(?: error_info=|$)")
_NO_TOKEN = "Could not create a OAuth2 access token"
_GOOGLE = re.compile(
    r"google::cloud::Status\((?P<status>[A-Z_]+): .*?last message of (?P<text>.*?) error_info="
    r".*?retry\.function=(?P<operation>\w+)",
    re.DOTALL,
)
_OF_BUCKETS = ("CreateResumableUpload", "InsertObject", "ListObjects")
_PASSING_GOOGLE = frozenset({"UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"})
_PASSING_CLOUD = re.compile(r"\b(?:UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED)\b")
_PASSING_NAME = re.compile(
    r"Timeout|TimedOut|ServerDisconnected|ConnectionClosed|ConnectionReset|ConnectError|ConnectionError|ReadError|"
    r"IncompleteRead|ChunkedEncoding|RemoteProtocol|ProtocolError|SlowDown|Throttl|TemporarilyUnavailable"
)


class TransferError(StorageError):
    """Bytes that could not be had or stored; the message is one line without secrets.

    Attributes:
        error_type: What kind of fault, for people who count them; the class of the error that says most.
        transient: It may pass when it is tried again.
        retry_after_s: Seconds that the server asked to wait.
    """

    def __init__(
        self,
        reason: str,
        error_type: str = "StorageError",
        transient: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.error_type = error_type
        self.transient = transient
        self.retry_after_s = retry_after_s


@contextmanager
def blamed_on(*addresses: str) -> Iterator[None]:
    """Turn whatever a library raises into a `TransferError` about the first of some addresses.

    Hold it around calls of libraries alone, so that mistakes of our own still end the job.
    """
    try:
        yield
    except OvssError:
        raise
    except Exception as error:
        if is_own_mistake(error):
            raise
        raise explain(error, *addresses) from error


def is_own_mistake(error: BaseException) -> bool:
    """Say whether an error is a slip of this program: one of the types of a slip, raised in a line of its own."""
    if not isinstance(error, NameError | AttributeError | TypeError | AssertionError):
        return False
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return module.partition(".")[0] in ("pipelines", "ovss_core", "jobs")


def explain(error: BaseException, *addresses: str) -> TransferError:
    """Say what an exception of a library means.

    Args:
        addresses: What was being read or written; the first gives the host, and no secret of any is repeated.
    """
    host = host_of(addresses[0]) if addresses else "the server"
    chain = list(_chain(error))
    known = next((link for link in chain if isinstance(link, TransferError)), None)
    if known is not None:
        return known
    told = (
        next(filter(None, (_status_of(link, host) for link in chain)), None)
        or next(filter(None, (_network_fault(link, host) for link in reversed(chain))), None)
        or next(filter(None, (_file_fault(link, *addresses[:1]) for link in chain)), None)
    )
    if told is not None:
        return told
    passing = any(
        _PASSING_NAME.search(type(link).__name__) or _PASSING_CLOUD.search(str(link)) for link in chain
    )
    return TransferError(one_line(error, *addresses), type(error).__name__, passing)


def one_line(error: BaseException, *addresses: str) -> str:
    """Return the message of an error as one line without secrets; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = scrub(lines[0], *addresses) if lines else type(error).__name__
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."


def http_error(status: int, host: str, hint: str = "", retry_after_s: float | None = None) -> TransferError:
    """Return the fault that an HTTP status other than success is."""
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    kind = "PermissionError" if status in _DENIED else "FileNotFoundError" if status in _GONE else "HTTPError"
    kind = "TimeoutError" if status in (408, 504) else kind
    return TransferError(
        f"HTTP {status}{phrase} from {host}{hint}", kind, status in _PASSING_STATUS, retry_after_s
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop(0)
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        inner = getattr(link, "os_error", None)
        reason = getattr(link, "reason", None)  # urllib's URLError
        waiting += [entry for entry in (inner, reason) if isinstance(entry, BaseException)]
        waiting.append(link.__cause__ or (None if link.__suppress_context__ else link.__context__))


def _status_of(error: BaseException, host: str) -> TransferError | None:
    if found := _AWS.search(str(error)):
        return _aws_fault(found, host)
    if "google::cloud::Status" in str(error) and (told := _google_fault(str(error), host)):
        return told
    if found := re.search(r"HTTP status(?: code)?:? (\d{3})", str(error)):
        return http_error(int(found.group(1)), host)
    status = next(
        (value for value in _statuses(error) if isinstance(value, int) and 400 <= value < 600), None
    )
    return None if status is None else http_error(status, host)


def _statuses(error: BaseException) -> Iterator[Any]:
    """Look where aiohttp, urllib, requests, httpx and botocore keep the status of an answer."""
    yield getattr(error, "status", None)
    yield getattr(error, "status_code", None)
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        yield response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        yield getattr(response, "status_code", None)
    if isinstance(error, HTTPError):
        yield error.code


def _aws_fault(found: re.Match[str], host: str) -> TransferError:
    name, status = found["name"], found["status"]
    if status:
        return http_error(int(status), host)
    if curl := _CURL.search(found["text"]):
        number = int(curl.group(1))
        reason = _CURL_REASONS.get(number, scrub(found["text"].strip().splitlines()[0])).format(host=host)
        return TransferError(reason, "ConnectionError", number not in (35, 60))
    text = (
        re.sub(r"\s*\(Request ID:.*?\)", "", found["text"].strip().splitlines()[0])
        if found["text"].strip()
        else ""
    )
    detail = "" if text.startswith("No response body") else f": {scrub(text)}"
    denied = name in (
        "ACCESS_DENIED",
        "SIGNATURE_DOES_NOT_MATCH",
        "INVALID_ACCESS_KEY_ID",
        "INVALID_SIGNATURE",
    )
    kind = "PermissionError" if denied else "FileNotFoundError" if name.startswith("NO_SUCH") else "HTTPError"
    code = "HTTP 403 " if name == "ACCESS_DENIED" else ""
    return TransferError(
        f"{code}{name.replace('_', ' ').lower()} ({found['operation']}) from {host}{detail}"[:_LENGTH],
        kind,
        bool(_PASSING_AWS.search(name)),
    )


def _google_fault(text: str, host: str) -> TransferError | None:
    """Say what Google's client means; None for a missing file, of which the address is told elsewhere."""
    curl = _CURL_OF_GOOGLE.search(text)
    if _NO_TOKEN in text:  # which machines of Google's ask a service for that has a name there alone
        return TransferError(
            f"no credentials for {host}: run gcloud auth application-default login, let GOOGLE_APPLICATION_CREDENTIALS "
            f"name a key file, or write {host.replace('://', '://anonymous@')} where everybody may read",
            "PermissionError",
            transient=curl is not None and curl.group(1) != "6",
        )
    if curl:
        number = int(curl.group(1))
        reason = _CURL_REASONS.get(number, curl.group(2).strip() or f"curl error {number}").format(host=host)
        return TransferError(reason, "ConnectionError", number not in (35, 60))
    found = _GOOGLE.search(text)
    if found is None:
        return None
    status, operation = found["status"], found["operation"]
    if status == "NOT_FOUND":
        missing = TransferError(f"no such bucket: {host}", "FileNotFoundError")
        return missing if operation.startswith(_OF_BUCKETS) else None
    denied = status in ("PERMISSION_DENIED", "UNAUTHENTICATED")
    return TransferError(
        f"{status.replace('_', ' ').lower()} ({operation}) from {host}: {scrub(found['text'])}"[:_LENGTH],
        "PermissionError" if denied else "HTTPError",
        status in _PASSING_GOOGLE,
    )


def _network_fault(error: BaseException, host: str) -> TransferError | None:
    if isinstance(error, IncompleteRead):
        return early_end(host, len(error.partial), error.expected and len(error.partial) + error.expected)
    if isinstance(error, socket.gaierror):
        return _unresolved(host, error.errno == socket.EAI_AGAIN)
    if isinstance(error, ssl.SSLCertVerificationError):
        return TransferError(f"the certificate of {host} is not accepted: {error.verify_message}", "SSLError")
    if isinstance(error, ssl.SSLError):
        again = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
        return TransferError(
            f"no TLS connection with {host}: {error.reason or error.strerror}", "SSLError", again
        )
    if isinstance(error, ConnectionRefusedError):
        return TransferError(f"connection refused by {host}", "ConnectionRefusedError", True)
    if isinstance(error, ConnectionError) and isinstance(error, OSError):
        return TransferError(f"connection reset by {host}", type(error).__name__, True)
    if isinstance(error, TimeoutError):
        return TransferError(f"no answer from {host} in time", "TimeoutError", True)
    return _network_fault_by_text(str(error), host)


def _network_fault_by_text(text: str, host: str) -> TransferError | None:
    """Find what libraries leave of the system's error in their own: its number or its words."""
    if "name resolution" in text or "[Errno -3]" in text:
        return _unresolved(host, True)
    if "Name or service not known" in text or "[Errno -2]" in text or "NameResolutionError" in text:
        return _unresolved(host, False)
    if f"[Errno {errno.ECONNREFUSED}]" in text:
        return TransferError(f"connection refused by {host}", "ConnectionRefusedError", True)
    if f"[Errno {errno.ECONNRESET}]" in text:
        return TransferError(f"connection reset by {host}", "ConnectionResetError", True)
    lost = "I/O operation on closed file" in text  # all that pyarrow leaves of a first byte that did not come
    if lost and host.startswith(("gs://", "gcs://")):
        return TransferError(f"no answer from {host}", "ConnectionError", True)
    return None


def _unresolved(host: str, again: bool) -> TransferError:
    words = "Temporary failure in name resolution" if again else "Name or service not known"
    return TransferError(
        f"the name of {host} cannot be resolved ({words}); is this machine online?", "ConnectionError", again
    )


def _file_fault(error: BaseException, address: str = "") -> TransferError | None:
    place = f": {redact(address)}" if address else ""
    if isinstance(error, FileNotFoundError):
        return TransferError(f"no such file{place}", "FileNotFoundError")
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        words = os.strerror(error.errno)
        reason = f"{words[:1].lower()}{words[1:]}{place}"
        return TransferError(reason, type(error).__name__, error.errno in _PASSING_ERRNO)
    return None


def early_end(host: str, received: int, expected: int | None) -> TransferError:
    """Return the fault of a body that ends before its announced length."""
    of = f" of {expected:,}" if expected else ""
    return TransferError(f"{host} ended the transfer after {received:,}{of} bytes", "IncompleteRead", True)
