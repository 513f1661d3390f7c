import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import encode_image

ADDED = Path(__file__).with_name("added_job")
BESIDE = """
from pathlib import Path
import jobs, pipelines

# every process, workers included, finds the package and its command beside those there are
jobs.__path__.append(str(Path(__file__).with_name("jobs")))
pipelines.__path__.append(str(Path(__file__).with_name("pipelines")))
"""
WITHOUT_RAY = """
import sys
from ovss_core.errors import ConfigError
from pipelines.brightness import TABLE, BrightnessStage, check_brightness
from pipelines.run.capacity import Pool
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from pipelines.run.record import holds_images, write_run
from pipelines.run.runner import ActorStage, Job
from pipelines.run.verify import verify_output
from pipelines.storage import Folder
from tests.pipelines.plain_execution import rows_of, run_plain

images, output = sys.argv[1:]
source = SourceOptions(images=images)
for wrong in (RunOptions(images), RunOptions(output, no_progress_s=0.5)):
    try:
        check_brightness(source, wrong, PoolOptions())
    except ConfigError as error:
        print(str(error).partition(" ")[0])
job = Job(
    Folder(output), source.open(), [ActorStage("brightness", BrightnessStage, {}, Pool("b", 1, 1), 2)], TABLE
)
run_plain(job)
write_run(job.output, {"job": "brightness", "schema": "brightness/1"}, {})
job.output.remove_folder("_done")
job.output.remove_folder("failures")
print(holds_images(job.output), len(rows_of(job.output, "brightness")))
print(verify_output(job.output).problems[0].partition(":")[0])
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that lays the job's package and its command beside those there are, and four images and one that is none."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "sitecustomize.py").write_text(BESIDE)
    shutil.copytree(ADDED / "brightness", tmp_path / "beside" / "pipelines" / "brightness")
    (tmp_path / "beside" / "jobs").mkdir()
    shutil.copy(ADDED / "command.py", tmp_path / "beside" / "jobs" / "brightness.py")
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(encode_image(number))
    (tmp_path / "images" / "none.jpg").write_bytes(b"no image")
    return tmp_path


def start(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(place / "beside"), str(Path(__file__).parents[2])])
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100"},
    )


def test_a_job_is_a_package_and_its_command(place: Path) -> None:
    listed = start(place, "-m", "jobs.cli", "--help")
    assert "\n  brightness    measure how bright images are\n" in listed.stdout, listed.stderr
    page = start(place, "-m", "jobs.cli", "brightness", "--help")
    assert "--webdataset PATH" in page.stdout, page.stderr
    assert "--actors N" in page.stdout


def test_its_checks_its_rows_and_its_table_are_its_own(place: Path) -> None:
    done = start(place, "-c", WITHOUT_RAY, str(place / "images"), str(place / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["--output", "no_progress_s", "True 4"]
    assert done.stdout.splitlines()[3].startswith("the run is not finished")


@pytest.mark.cluster
def test_it_runs_resumes_and_is_verified_as_the_others_are(place: Path) -> None:
    words = ("--images", str(place / "images"), "--output", str(place / "out"), "--actors", "1")
    first = start(place, "-m", "jobs.cli", "brightness", *words)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("4 of 5 images, in all ")
    assert pq.read_table(place / "out" / "brightness").num_rows == 4
    again = start(place, "-m", "jobs.cli", "brightness", *words)
    assert again.stdout == first.stdout, again.stderr
    verdict = start(place, "-m", "jobs.cli", "verify", str(place / "out"), "--content")
    assert "4 labelled, 1 failed; everything is there" in verdict.stdout, verdict.stdout
