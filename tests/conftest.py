"""What tests share: one Ray instance a session, and images made on the spot."""

import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.forked_workers import local_ray

# Triton decides when a kernel is defined whether it will be interpreted; no test is collected before this file is read
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one Ray together where `--dist loadgroup` spreads the others: to start another one costs."""
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start every test from the same random numbers, whichever ran before it in this process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small local Ray for all tests that need it."""
    os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # what tests wait for
    # as in a run, where a new worker costs more than an idle one
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    with local_ray(
        "pipelines.label.stages",
        "pipelines.evaluate.stage",
        "pipelines.derive.export",
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
