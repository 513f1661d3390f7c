import tracemalloc
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.run.manifest import prepare_manifest
from pipelines.run.runner import plan_job
from pipelines.run.work_units import ShardTask
from pipelines.sources import ImageRecord
from pipelines.sources.fetch import ImageFetcher
from pipelines.storage import Folder
from tests.pipelines.mean_color import mean_job


class Numbers:
    """A corpus of so many images with long names, none of which exists."""

    uri, ignored = "/", 0

    def __init__(self, count: int) -> None:
        self.count = count

    def describe(self) -> dict[str, Any]:
        return {"uri": "/"}

    def fetcher(self, max_bytes: int, timeout_s: float) -> ImageFetcher:
        return ImageFetcher(self.uri, max_bytes=max_bytes, timeout_s=timeout_s)

    def containers(self) -> None:
        return None

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        return (
            ImageRecord(f"{n:0100d}.jpg", f"/{n:0100d}.jpg", "file", f"/{n:0100d}.jpg")
            for n in range(self.count)
        )


def peak(count: int, output: Path) -> int:
    """Return the most memory that listing, listing again and planning took, in bytes."""
    source = Numbers(count)
    job = mean_job(str(output), source)
    tracemalloc.start()
    prepare_manifest(Folder(str(output)), source, 256)
    manifest = prepare_manifest(Folder(str(output)), source, 256)
    units = plan_job(job, manifest).units
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    slices = [piece for unit in units if not isinstance(unit, ShardTask) for piece in unit]
    assert sum(piece.stop - piece.start for piece in slices) == count
    return most


@pytest.mark.slow
def test_the_drivers_memory_grows_by_a_small_constant_an_image(tmp_path: Path) -> None:
    small, large = peak(10_000, tmp_path / "small"), peak(60_000, tmp_path / "large")
    assert large - small < 100 * 50_000
