"""What tests share: one Ray instance a session, and images made on the spot."""

import gc
import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

# Where two processes share the cores, threads of one spin while they wait for cores that the other has: on busy cores
# the same tests took 198 core-seconds, and 56 so. And workers compute with one thread: with two, sums differ in their
# last digits, which decide masks of random weights. Read when torch is imported, and by what a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from PIL import Image
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.forked_workers import local_ray

ONE_RAY = "one-ray"
"""In the name of every test that uses `ray_session`, the only thing about a test that xdist's scheduler is told."""


LONGEST = (
    "tests/test_golden.py",
    "tests/gpu_count/test_gpu_count.py",
    "tests/engine/test_engine.py",
    "tests/demonstration/test_training.py",
    "tests/jobs/test_cli.py",
    "tests/pipelines/test_own_words.py",
    "tests/pipelines/test_added_column.py",
    "tests/gpu_count/test_roofline.py",
    "tests/pipelines/test_damaged_state.py",
    "tests/derive/test_object_store.py",
)
"""Files of more than 7 core-seconds beside the Ray: they come first, so that the processes end together."""


def piece_of(nodeid: str) -> str:
    """Return the name of the piece of work that a test belongs to: what shares the Ray is one, every other file its own.

    A file's fixtures are made once so: where each test was a piece, those of a module were made in two or three processes.
    """
    return ONE_RAY if ONE_RAY in nodeid.partition("[")[2] else nodeid.partition("::")[0]


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests; the one that hands them out is waited for, and needs no torch."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    gc.disable()  # what is imported stays, and to look through it again and again took a tenth of collecting the tests
    import torch

    from tests.shape_checks import check_packages

    # Triton decides when a kernel is defined whether it will be interpreted
    os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
    check_packages()


def pytest_collection_finish() -> None:
    gc.enable()


class OneRayScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Keep the tests of one Ray in one process, for to start another one costs, and those of a file, and spread the files.

    xdist's own `loadgroup` tells a group by a suffix of the test's name, which it writes to an attribute that pytest 9.2
    no longer reads: every process had a Ray of its own.
    """

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # not the most tests first: the order is that of the items

    def _split_scope(self, nodeid: str) -> str:
        return piece_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    """Let `--dist loadgroup` keep its promise."""
    return OneRayScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of the one Ray, which are the longest piece, and go on with the longest files."""
    places = {file: place for place, file in enumerate(LONGEST)}
    items.sort(
        key=lambda item: -1 if _needs_ray(item) else places.get(item.nodeid.partition("::")[0], len(LONGEST))
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start every test from the same random numbers and threads, whichever ran before it in this process."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the Ray behind the last test that needs it: its own processes compute as long as it is there."""
    if nextitem and _needs_ray(item) and not _needs_ray(nextitem):
        ray = item._fixtureinfo.name2fixturedefs["ray_session"][-1]  # type: ignore[attr-defined]
        ray.finish(item._request)  # type: ignore[attr-defined]


def _needs_ray(item: pytest.Item) -> bool:
    return "ray_session" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session", params=[ONE_RAY])
def ray_session() -> Iterator[None]:
    """One small local Ray for all tests that need it."""
    # what a test waits for; each process and an agent take part in each report
    os.environ.setdefault("RAY_metrics_report_interval_ms", "2500")
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # nobody asks for the history of tasks
    # nobody reads how much memory each process takes, nor what workers print
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
    os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "10")
    # Ray's 15 leaves a worker a thirtieth of a core beside the other processes that run tests
    os.environ.setdefault("RAY_worker_niceness", "0")
    # as in a run, where a new worker costs more than an idle one
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    with local_ray(
        "pipelines.label.stages",
        "pipelines.evaluate.stage",
        "pipelines.derive.export",
        "tests.ready_workers",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    ):
        yield


def encode_image(seed: int, height: int = 24, width: int = 32, kind: str = "JPEG") -> bytes:
    """Encode a small image of colored blocks that the seed decides."""
    blocks = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
    pixels = blocks.repeat(-(-height // 3), 0).repeat(-(-width // 4), 1)[:height, :width]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that fills a folder with so many JPEG files, some of them in a folder below."""

    def build(count: int, name: str = "images") -> Path:
        folder = tmp_path / name
        (folder / "below").mkdir(parents=True)
        for number in range(count):
            place = folder / ("below" if number % 3 == 2 else "") / f"{number:04d}.jpg"
            place.write_bytes(encode_image(number))
        return folder

    return build
