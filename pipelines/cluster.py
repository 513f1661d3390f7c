"""Joining or starting Ray, and running one function where the GPUs are."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ovss_core.errors import ClusterError
from pipelines.capacity import cluster_nodes

_CONNECT_S = 20.0
_KEEP_IDLE_MS = 600_000
"""How long workers without a task stay. Ray ends them after a second where actors fill the node's CPUs, and then
every task that writes pays a second of processor time for a new process."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to Ray inside the block.

    A Ray that this process has joined already is used and left alone. Otherwise the cluster at `address`, or
    at RAY_ADDRESS, is joined; without either one starts on this machine and ends with the block.

    Raises:
        ClusterError: There is no cluster at that address.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ.setdefault(
        "RAY_BACKEND_LOG_LEVEL", "fatal"
    )  # Ray's core reports Ray Data's own actors as errors
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(_KEEP_IDLE_MS))
    remote = address or os.environ.get("RAY_ADDRESS")
    options = {"address": remote} if remote else {"address": "local", "include_dashboard": False}
    try:
        _check_reachable(remote)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ClusterError(
            f"cannot join the Ray cluster at {remote or 'this machine'}: {reason}; check --address"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Try a host and port first: Ray itself tries for minutes where nobody answers."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def run_near_gpu(function: Callable[..., Any], *arguments: Any, use_gpu: bool = True) -> Any:
    """Call a function as ``function(*arguments, device)``: on a GPU of the cluster if it has one, else here."""
    if not use_gpu or not any(node.gpus for node in cluster_nodes()):
        return function(*arguments, "cpu")
    task = ray.remote(num_gpus=0.25, num_cpus=0.25, max_retries=1)(function)
    try:
        return ray.get(task.remote(*arguments, "cuda"))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from error
