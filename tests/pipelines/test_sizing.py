import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovss_core.errors import ClusterError, OvssError
from pipelines.benchmark.sizing import SizingJob, count_rows, main, own_memory, role


def test_a_lost_image_and_one_with_two_rows_are_found(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for name, ids in (("0", ["a", "b"]), ("1", ["c"])):
        pq.write_table(pa.table({"image_id": ids}), tmp_path / f"labels/{name}.parquet")
    assert count_rows(tmp_path, 3) == 3
    with pytest.raises(OvssError, match="4 images gave 3 rows of 3 images"):
        count_rows(tmp_path, 4)
    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "labels/2.parquet")
    with pytest.raises(OvssError, match="4 images gave 4 rows of 3 images"):
        count_rows(tmp_path, 4)


def test_processes_are_told_apart_by_their_command_lines() -> None:
    lines = {
        "ray::AttemptRecord": "ledger",
        "ray::MapWorker(MapBatches(NoopStage)).submit": "workers",
        "ray::MapBatches(read)": "tasks",
        "/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=": "raylet",
        "/x/ray/core/src/ray/gcs/gcs_server --log_dir=": "control service",
        "driver": "driver",
        "python log_monitor.py": "other",
    }
    assert {line: role(line) for line in lines} == lines


def test_a_process_that_takes_memory_has_it_but_not_what_lies_in_shared_memory() -> None:
    before = own_memory(os.getpid())
    # fresh pages: what tests before this one gave back would be taken again first
    with mmap.mmap(-1, 1 << 26, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as data:
        data.write(os.urandom(1 << 20) * 64)
        assert own_memory(os.getpid()) - before > 0.9 * len(data)
    assert own_memory(1 << 30) == 0  # there is no such process


def test_the_rule_of_a_job_is_that_of_its_blocks() -> None:
    job = SizingJob(records=640, actors=2, image_bytes=800_000, proposal_bytes=0, batch=16)
    assert job.rule == 2 * 3 * (1 + 1 + 2) * 20 * 800_000  # 640 images in 32 read tasks
    assert len(job.pools) == 1


def test_workers_that_leave_no_cpu_for_reading_are_refused_before_anything_starts() -> None:
    with pytest.raises(ClusterError, match=r"needs 4\.5 CPUs"):
        main(["--actors", "4", "--cpus", "4"])


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_the_command_measures_a_run_that_has_a_row_of_every_image() -> None:
    small = "--records 96 --image-bytes 200000 --proposal-bytes 300000 --batch 4 --fragment-rows 8 --speed 50 --dashboard 0"
    command = [
        sys.executable,
        "-m",
        "pipelines.benchmark.sizing",
        "--json",
        "--store-mb",
        "100",
        *small.split(),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=500)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert found["rows"] == 96
    assert 3 * 200_000 < found["used"] <= found["store"] == 100_000_000
    assert found["used"] <= found["touched"] + found["on_disk"]
    assert 0.1 < found["pace"] < 2
    assert found["head"]["driver"] > found["head"]["raylet"] > 0
    assert found["head"]["ledger"] > 0
    assert found["worker"]["workers"] > 0
