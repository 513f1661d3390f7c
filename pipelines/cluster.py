"""Joining or starting Ray, and running one function where the GPUs are."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ovss_core.errors import ClusterError
from pipelines.capacity import cluster_nodes


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
    remote = address or os.environ.get("RAY_ADDRESS")
    options = {"address": remote} if remote else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"cannot join the Ray cluster at {remote or 'this machine'}: {str(error).splitlines()[0]}; check --address"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def run_near_gpu(function: Callable[..., Any], *arguments: Any, use_gpu: bool = True) -> Any:
    """Call a function as ``function(*arguments, device)``: on a GPU of the cluster if it has one, else here."""
    if not use_gpu or not any(node.gpus for node in cluster_nodes()):
        return function(*arguments, "cpu")
    task = ray.remote(num_gpus=0.25, num_cpus=0.25, max_retries=1)(function)
    try:
        return ray.get(task.remote(*arguments, "cuda"))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from error
