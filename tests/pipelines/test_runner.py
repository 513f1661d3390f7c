import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from ovss_core.errors import OvssError
from pipelines.run.execution import RayExecution
from pipelines.run.fragments import finished_ids
from pipelines.run.manifest import Manifest, prepare_manifest
from pipelines.run.progress import ProgressReport
from pipelines.run.runner import Job, run_job
from pipelines.run.sink import WriteFragments, marker_file, reopen_parts
from pipelines.run.summary import write_summary
from pipelines.sources import FolderSource, WebDatasetSource
from pipelines.storage import Folder
from tests.pipelines.deadly_reading import DeadlyReader
from tests.pipelines.mean_color import MEANS, mean_job, mean_of
from tests.pipelines.test_shards import images as images_by_name
from tests.pipelines.test_shards import write_shard
from tests.pipelines.test_sink import finished

ImageFolder = Callable[..., Path]


def run(job: Job, shard_size: int = 8) -> tuple[Manifest, ProgressReport]:
    manifest = prepare_manifest(job.output, job.source, shard_size)
    with ProgressReport(manifest.images) as progress:
        run_job(job, manifest, progress)
    return manifest, progress


def rows(output: Path, table: str) -> pa.Table:
    files = sorted((output / table).glob("*.p*q*")) if (output / table).exists() else []
    return pa.concat_tables([pq.read_table(file) for file in files]) if files else pa.table({"image_id": []})


def test_every_image_has_one_row_in_manifest_order_with_the_value_of_its_pixels(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output = image_folder(21), tmp_path / "out"
    manifest, progress = run(mean_job(str(output), FolderSource(str(images)), actors=2))

    table = rows(output, "means")
    expected = [
        row["image_id"]
        for n in range(3)
        for row in pq.read_table(output / f"_manifest/part-{n:05d}.pq").to_pylist()
    ]
    assert table["image_id"].to_pylist() == expected
    assert len(expected) == 21
    for image_id, mean in zip(expected, table["mean"].to_pylist(), strict=True):
        assert mean == mean_of((images / image_id).read_bytes())
    assert (progress.done, progress.failed) == (21, 0)
    summary = write_summary(Folder(str(output)), manifest, {})
    assert summary["statistics"]["sum_of_means"] == pytest.approx(sum(table["mean"].to_pylist()))
    assert not (output / "_fragments").exists()


def test_the_ledger_ends_with_the_run(ray_session: None, image_folder: ImageFolder, tmp_path: Path) -> None:
    job = mean_job(str(tmp_path / "out"), FolderSource(str(image_folder(2))))
    execution = RayExecution(job)
    manifest = prepare_manifest(job.output, job.source, 8)
    with ProgressReport(manifest.images) as progress:
        run_job(job, manifest, progress, start=lambda job: execution)
    assert rows(tmp_path / "out", "means").num_rows == 2
    with pytest.raises(ray.exceptions.RayActorError):
        execution.finished()


def test_parts_that_are_complete_in_one_second_are_all_merged_when_the_round_ends(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    job = mean_job(str(tmp_path / "out"), FolderSource(str(image_folder(4))))
    manifest = prepare_manifest(job.output, job.source, shard_size=1)
    writer, execution = WriteFragments(job.output.uri, MEANS), RayExecution(job)
    for part in manifest.parts:
        ids, row = pq.read_table(tmp_path / f"out/_manifest/{part}.pq")["image_id"], finished("a", part)
        writer.write(row.set_column(row.column_names.index("image_id"), "image_id", ids))
        execution.merge(part)
    execution.wait()
    assert all(job.output.exists(marker_file(part)) for part in manifest.parts)
    assert len(manifest.parts) == 4


def test_files_that_are_no_images_become_failures_and_the_others_are_done(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output = image_folder(6), tmp_path / "out"
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.png").write_text("no image")
    manifest, _ = run(mean_job(str(output), FolderSource(str(images))))

    failures = rows(output, "_failures").to_pylist()
    assert [row["image_id"] for row in failures] == ["empty.jpg", "text.png"]
    assert {(row["stage"], row["error_type"]) for row in failures} == {("mean", "ImageError")}
    summary = write_summary(Folder(str(output)), manifest, {})
    assert (summary["images"], summary["labelled"], summary["failed"]) == (8, 6, 2)


def test_images_that_kill_their_worker_become_failures_and_their_neighbors_are_done(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output = image_folder(16), tmp_path / "out"
    poison = ["0003.jpg", "below/0005.jpg"]
    run(mean_job(str(output), FolderSource(str(images)), actors=2, poison=poison))

    failures = rows(output, "_failures").to_pylist()
    assert sorted(row["image_id"] for row in failures) == poison
    assert {row["error_type"] for row in failures} == {"WorkerCrash"}
    assert rows(output, "means").num_rows == 14


def test_a_programming_error_ends_the_job(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    job = mean_job(str(tmp_path / "out"), FolderSource(str(image_folder(6))), wrong=["0001.jpg"])
    with pytest.raises(OvssError, match="a mistake in the program"):
        run(job)


def test_a_run_that_comes_back_does_only_what_is_missing(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output = image_folder(20), tmp_path / "out"
    job = mean_job(str(output), FolderSource(str(images)))
    run(job)
    table = rows(output, "means").slice(8, 8)
    before = {path.name: path.stat().st_ino for path in (output / "means").iterdir()}
    reopen_parts(Folder(str(output)), ["part-00001"], MEANS)
    [fragment] = (output / "_fragments/part-00001").iterdir()
    pq.write_table(table.slice(0, 5), fragment)

    _, progress = run(job)

    assert progress.fresh == 3
    after = {path.name: path.stat().st_ino for path in (output / "means").iterdir()}
    assert before.keys() == after.keys() == {"means-00000.parquet"}
    assert rows(output, "means").slice(8, 8).equals(table)


def test_images_added_to_the_source_become_a_new_part(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output = image_folder(10), tmp_path / "out"
    job = mean_job(str(output), FolderSource(str(images)))
    run(job)
    first = (output / "means/means-00000.parquet").stat().st_ino
    (images / "0000b.jpg").write_bytes((images / "0000.jpg").read_bytes())
    (images / "0001.jpg").unlink()

    manifest, progress = run(job)

    assert (list(manifest.parts.values()), manifest.appended, manifest.gone) == ([8, 2, 1], 1, 1)
    assert progress.fresh == 1
    assert pq.read_table(output / "means/means-00001.parquet")["image_id"].to_pylist() == ["0000b.jpg"]
    assert (output / "means/means-00000.parquet").stat().st_ino == first


@pytest.mark.timeout(300)
def test_a_killed_driver_is_resumed_without_repeating_or_losing_an_image(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output = image_folder(40), tmp_path / "out"
    command = [sys.executable, "-m", "tests.pipelines.mean_color", str(images), str(output), "0.15"]
    process = subprocess.Popen(command, process_group=0, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 150
    while not list(output.glob("_done/*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stored = sum(
        len(finished_ids(Folder(str(output)), f"part-{part:05d}"))
        for part in range(5)
        if not (output / f"_done/part-{part:05d}.json").exists()
    )
    finished = 8 * len(list(output.glob("_done/*.json")))
    assert 0 < finished < 40

    _, progress = run(mean_job(str(output), FolderSource(str(images))))

    assert progress.fresh == 40 - finished - stored
    ids = rows(output, "means")["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 40


def test_a_batch_that_fails_is_tried_in_halves_until_the_faulty_item_is_alone() -> None:
    from pipelines.faults import Failure, process_all

    sizes = []

    def work(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        if 5 in items:
            raise RuntimeError("out of memory\ndetails")
        return [item * 2 for item in items]

    outcomes = process_all("double", [str(n) for n in range(8)], list(range(8)), work)

    assert outcomes[5] == Failure("double", "RuntimeError", "out of memory")
    assert [outcome for outcome in outcomes if not isinstance(outcome, Failure)] == [0, 2, 4, 6, 8, 12, 14]
    assert sizes == [8, 4, 4, 2, 1, 1, 2]
    assert np.all(np.array(sizes) <= 8)


def test_an_image_that_kills_its_reader_becomes_a_failure_and_its_neighbors_are_done(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.run.execution.ReadImages", DeadlyReader)
    images, output = image_folder(12), tmp_path / "out"
    run(mean_job(str(output), FolderSource(str(images))))

    [failure] = rows(output, "_failures").to_pylist()
    assert (failure["image_id"], failure["stage"]) == ("0003.jpg", "read")
    assert failure["error_type"] == "WorkerCrash"
    assert rows(output, "means").num_rows == 11


def test_a_shard_that_kills_its_reader_keeps_its_first_images_and_the_other_shards_are_done(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.run.execution.ReadImages", DeadlyReader)
    write_shard(tmp_path / "s/a.tar", images_by_name(6))
    write_shard(tmp_path / "s/b.tar", images_by_name(20, 10))
    output = tmp_path / "out"
    job = replace(mean_job(str(output), WebDatasetSource(str(tmp_path / "s"))), shard_size=8)
    run(job)

    [failure] = rows(output, "_failures").to_pylist()
    assert (failure["image_id"], failure["error_type"]) == ("a.tar", "WorkerCrash")
    assert sorted(rows(output, "means")["image_id"].to_pylist()) == [
        *(f"a.tar/{n:03d}" for n in range(3)),
        *(f"b.tar/{n:03d}" for n in range(10, 30)),
    ]
