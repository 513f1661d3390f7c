"""Joining or starting Ray: quietly, in a place where it can work, and with one line where it cannot."""

import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from ovss_core.errors import ClusterError
from pipelines.run.capacity import cluster_nodes
from pipelines.run.compute import pick_device
from pipelines.run.progress import announced
from pipelines.run.ray_processes import end_leftovers, marked, watched

_CONNECT_S = 20.0
_KEEP_IDLE_MS = 600_000
"""How long workers without a task stay. Ray ends them after a second where actors fill the node's CPUs, and then
every task that writes pays a second of processor time for a new process."""
_SOCKET_PATH_BYTES = 107 if sys.platform.startswith("linux") else 103
_SOCKET_TAIL = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray puts a socket at, below its folder for temporary files."""
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_LEAST_FREE_BYTES = 200 << 20
_OWN_NEWS = re.compile(rb"\[[^\]]* I \d+ \d+\] logging\.cc:\d+: Set ray log level from environment variable")
"""What Ray's core says at its start because it was told to say nothing."""
_SLOW_START = "The current node timed out during startup"
"""How Ray's fault begins where its processes needed more than its fixed 30 seconds, as they do on a busy machine."""
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def connected(address: str | None, verbose: bool = False) -> Iterator[bool]:
    """Be connected to Ray inside the block.

    A Ray that this process has joined already is used and left alone. Otherwise the cluster at `address`, or
    at RAY_ADDRESS, is joined; without either one starts on this machine and ends with the block.

    Args:
        address: Where the cluster is.
        verbose: Let Ray's own messages through.

    Yields:
        Whether other nodes may join: False for a Ray that was started here.

    Raises:
        ClusterError: Ray cannot start here, or there is no cluster at that address.
    """
    if ray.is_initialized():
        yield True
        return
    remote = address or os.environ.get("RAY_ADDRESS")
    step = f"joining the Ray cluster at {remote}" if remote else "starting Ray on this machine"
    mark = uuid.uuid4().hex
    with _quiet(verbose):
        try:
            with announced(step):
                _start(remote, verbose, mark)
            with watched(mark):
                yield bool(remote)
        finally:
            ray.shutdown()
            end_leftovers(mark)


def _start(remote: str | None, verbose: bool, mark: str) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(_KEEP_IDLE_MS))
    # else Ray starts workers at once and waits for each, for ever where one of them is killed, deaf to any signal
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault(
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1"
    )  # a signal ends a run cleanly, not in a stack
    options: dict[str, Any] = {"log_to_driver": verbose}
    options["logging_level"] = logging.INFO if verbose else logging.ERROR
    if remote:
        options["address"] = remote
    else:
        options |= {"address": "local", "include_dashboard": False, "_temp_dir": temporary_folder()}
    for again in (True, False):
        try:
            _check_reachable(remote)
            with marked(mark), _own_signals(), _without_own_news(verbose):
                ray.init(**options)
        except ClusterError:
            raise
        except Exception as error:  # whatever Ray raises, nothing has started
            if remote or not again or not str(error).startswith(_SLOW_START):
                raise ClusterError(explain_start(error, remote)) from error
            ray.shutdown()
            end_leftovers(mark)
        else:
            return


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Keep what Ray says to itself: its log files have it, and a run says in one line what became of it."""
    if verbose:
        yield
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its core calls Ray Data's own actors errors
    loggers = {name: logging.getLogger(name) for name in ("ray", "ray.data")}
    levels = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray(\.|$)")
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers of the signals that end it: `ray.init` puts its own in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _ENDING}
    try:
        yield
    except SystemExit:  # how Ray's own handler answers SIGTERM while it starts
        own = handlers[signal.SIGTERM]
        if callable(own):
            own(signal.SIGTERM, None)
        raise
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: set by something else than Python
                signal.signal(number, handler)


@contextmanager
def _without_own_news(verbose: bool) -> Iterator[None]:
    """Hold back what is written to file descriptor 2 inside the block; pass it on afterwards, but for `_OWN_NEWS`."""
    if verbose:
        yield
        return
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            with suppress(OSError):  # a terminal that has gone
                os.write(2, b"".join(line for line in held if not _OWN_NEWS.match(line)))


def temporary_folder() -> str | None:
    """Choose the folder of a local Ray's sockets and logs; None leaves Ray's default.

    Raises:
        ClusterError: No folder is short enough for its sockets, writable, and has room.
    """
    default = _system_folder()
    candidates = [default, *_SHORT_FOLDERS] if _too_long(default) else [default]
    faults = []
    for place in candidates:
        fault = _fault(place)
        if not fault:
            return None if place == default else f"{place}/ray"
        faults.append(f"{place} {fault}")
    raise ClusterError(
        f"Ray cannot start: {'; '.join(faults)}; set RAY_TMPDIR to a short path with room, such as /tmp"
    )


def _system_folder() -> str:
    """Return where Ray would put its folder, by its own rule."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def _too_long(folder: str) -> int:
    """Return by how many bytes a folder's path is too long for Ray's sockets."""
    path = os.path.abspath(f"{folder}/ray") + _SOCKET_TAIL  # noqa: PTH100 (Path would resolve links)
    return max(0, len(os.fsencode(path)) - _SOCKET_PATH_BYTES)


def _fault(folder: str) -> str:
    if excess := _too_long(folder):
        return f"is {excess} characters too long for its sockets"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written to"
    return f"has only {free >> 20} MB free" if free < _LEAST_FREE_BYTES else ""


def explain_start(error: BaseException, remote: str | None) -> str:
    """Say in one line why Ray did not start or could not be joined, and what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Version mismatch"):
        theirs, ours = (", ".join(line.replace(":", "") for line in lines[at : at + 2]) for at in (1, 4))
        return (
            f"cannot join the Ray cluster at {remote}: it runs {theirs}, this process {ours}; use the same versions "
            "of both on all machines"
        )
    reason = lines[0].rstrip(".")
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    if remote:
        return f"cannot join the Ray cluster at {remote}: {reason}; check --address"
    return (
        f"Ray cannot start on this machine: {reason}; check the room in {_system_folder()} and /dev/shm, and the "
        "limits of processes and memory, or give -v to see Ray's own messages"
    )


def _check_reachable(address: str | None) -> None:
    """Try a host and port first: Ray itself tries for minutes where nobody answers."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def run_near_gpu(function: Callable[..., Any], *arguments: Any, use_gpu: bool = True) -> Any:
    """Call a function as ``function(*arguments, device)``: on a GPU of the cluster if it has one, else here."""
    if not use_gpu or not any(node.gpus for node in cluster_nodes()):
        return function(*arguments, "cpu")
    task = ray.remote(num_gpus=0.25, num_cpus=0.25, max_retries=1)(_call_on_own_device)
    try:
        return ray.get(task.remote(function, *arguments))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ClusterError(f"the text could not be encoded on the cluster: {reason}; try again") from error


def _call_on_own_device(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments, pick_device("auto"))
