"""Ray's workers as forks of one process that has imported torch, open_clip and the project.

A fresh worker imports for some seven seconds of processor time, and every actor of every job in the tests is one.
So the Ray of `local_ray` starts this file as its worker, which hands its arguments, environment and files to a server; a fork
of that goes on as Ray's own worker would. Where no server answers, this process itself becomes the worker.
"""

import atexit
import json
import os
import runpy
import signal
import socket
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

FOLDER = "OVSS_TEST_WORKERS"
"""Where the server's socket lies. Set to nothing from outside, every worker is a fresh process."""


LATE = (
    "pydantic.v1.fields",
    "pyarrow.json",
    "ray._common.pydantic_compat",
    "ray._private.arrow_serialization",
    "ray.dag.compiled_dag_node",
    "ray.data._internal.execution.operators.actor_pool_map_operator",
    "ray.data._internal.issue_detection",
    "ray.data._internal.planner.plan_udf_map_op",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PpmImagePlugin",
)
"""What a worker of Ray Data imports on its way, from its first object to its end: more than half of what it computed."""


@contextmanager
def local_ray(*modules: str, **options: Any) -> Iterator[None]:
    """Be connected inside the block to a Ray that is started here and forks its workers, which have those modules."""
    import tempfile
    from functools import partialmethod

    import pytest
    import ray
    from ray._private.parameter import RayParams

    fresh = os.environ.get(FOLDER) == "" or not sys.platform.startswith("linux")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        if not fresh:
            patch.setenv(FOLDER, folder)
            # without what passes on the words of workers, and what asks for machines
            ours = {"worker_path": __file__, "include_log_monitor": False, "no_monitor": True}
            patch.setattr(RayParams, "__init__", partialmethod(RayParams.__init__, **ours))
        try:
            ray.init("local", **options)
        except Exception:  # Ray's processes get 30 seconds, which a busy machine may not give
            ray.shutdown()
            ray.init("local", **options)
        try:
            job = ray.get_runtime_context().get_job_id()
            with nullcontext() if fresh else _server(folder, job, modules):
                yield
        finally:
            ray.shutdown()


@contextmanager
def _server(folder: str, job: str, modules: Sequence[str]) -> Iterator[None]:
    """Run the server for the workers of a job; Ray reads two of its settings once, when it is imported."""
    import subprocess
    from pathlib import Path

    import ray

    [raylet] = ray._private.worker._global_node.all_processes["raylet"]
    settings = {"RAY_JOB_ID": job, "RAY_RAYLET_PID": str(raylet.process.pid)}
    one_thread = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    with socket.socket(socket.AF_UNIX) as requests:
        requests.bind(f"{folder}/{job}")
        requests.listen(64)  # workers may ask before the server has imported
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_workers", "serve", str(requests.fileno()), *modules],
            cwd=Path(__file__).parents[1],
            env=os.environ | settings | one_thread,
            stdin=subprocess.PIPE,
            pass_fds=[requests.fileno()],
        )
    try:
        yield
    finally:
        server.communicate()  # its standard input ends


def serve(requests: socket.socket, modules: Sequence[str]) -> None:
    """Fork for every request, until standard input ends."""
    import gc
    from importlib import import_module
    from selectors import EVENT_READ, DefaultSelector

    for module in ("ray._private.workers.default_worker", "ray.data", *modules):
        import_module(module)
    for module in LATE:
        with suppress(ImportError):  # another Ray may have another way
            import_module(module)
    assert os.listdir("/proc/self/task") == [str(os.getpid())], "a fork keeps one thread alone"  # noqa: PTH208
    gc.freeze()
    for end in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        end.atexit = False  # torch's take apart what it has registered
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with DefaultSelector() as ready:
        ready.register(requests, EVENT_READ)
        ready.register(sys.stdin, EVENT_READ)
        while all(key.fileobj is requests for key, _ in ready.select()):
            request, _ = requests.accept()
            if os.fork() == 0:
                break
            request.close()
            draw_ids(1024)
        else:
            os._exit(0)  # what it has imported complains at an ordinary end
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    take_place(request)


def draw_ids(count: int) -> list[str]:
    """Draw from Ray's random numbers, in hexadecimal digits. A fork goes on where its parent stood.

    So the parent draws after each fork, else all draw the same. Each worker puts an object with a random name into the
    store when it starts and deletes it again: where two started within some milliseconds, one ended for want of
    "its" object before it was known to Ray, which waited a minute for it.
    """
    from ray import WorkerID

    return [WorkerID.from_random().hex() for _ in range(count)]


def take_place(request: socket.socket) -> None:
    """Become the worker that asks: with its files, folder, process group, environment and arguments."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    with request:
        _, files, _, _ = socket.recv_fds(request, 1, 3)
        with request.makefile("rb") as stream:
            given = json.load(stream)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(given["folder"])
        os.setpgid(0, given["group"])
        os.environ.clear()
        os.environ.update(given["environment"])
        Config.initialize("")  # Ray read its settings from the environment of the server
        sys.argv = given["arguments"]
        request.sendall(b"!")
    try:
        work()
    except SystemExit as end:
        atexit._run_exitfuncs()  # Ray takes its leave
        # to take apart what was imported would copy all of it, for it is shared with the server
        os._exit(end.code if isinstance(end.code, int) else 1)


def ask() -> bool:
    """Ask the server for a fork that takes this process's place; return whether there is one."""
    with suppress(OSError, KeyError), socket.socket(socket.AF_UNIX) as request:
        request.connect(f"{os.environ[FOLDER]}/{os.environ['RAY_JOB_ID']}")
        socket.send_fds(request, [b"!"], [0, 1, 2])
        given = {
            "folder": os.getcwd(),  # noqa: PTH109 (pathlib takes longer than the whole question)
            "group": os.getpgrp(),
            "environment": dict(os.environ),
            "arguments": sys.argv,
        }
        request.sendall(json.dumps(given).encode())
        request.shutdown(socket.SHUT_WR)
        return request.recv(1) == b"!"
    return False


def work() -> None:
    """Be Ray's own worker."""
    import ray._private.workers.default_worker as worker

    assert worker.__file__
    sys.path[0] = os.path.dirname(worker.__file__)  # noqa: PTH120
    runpy.run_path(worker.__file__, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(socket.socket(fileno=int(sys.argv[2])), sys.argv[3:])
    elif not ask():
        work()
