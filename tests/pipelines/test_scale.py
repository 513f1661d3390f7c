"""A corpus of names, and what a driver reads of it when it comes back."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.benchmark import fragments, scale
from pipelines.run.displays import json_line, text_line
from pipelines.run.events import Event, shown_by
from pipelines.run.lifecycle import Course, _list
from pipelines.run.manifest import prepare_manifest
from pipelines.run.manifest_files import read_part
from pipelines.run.options import PoolOptions, RunOptions
from pipelines.run.sink import OutputTable
from pipelines.storage import Folder
from tests.pipelines.kept_events import Kept


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the syncs, which only a power cut would tell."""
    monkeypatch.setattr("pipelines.transport.local._sync", lambda descriptor: None)


def test_every_phase_counts_every_image_once_and_a_resumed_one_only_what_is_left(tmp_path: Path) -> None:
    place, count = str(tmp_path / "out"), 4000
    listed = scale.carry_out_phase("list", place, count)
    assert listed["peak_mb"] > 0
    assert prepare_manifest(Folder(place), scale.SyntheticSource(count), 256).images == count
    assert scale.carry_out_phase("plan", place, count)["units"] == 63  # a batch of 64 each
    assert scale.carry_out_phase("loop", place, count)["fragments_a_minute"] > 5000
    scale.finish_half(place)
    assert scale.carry_out_phase("resume", place, count)["ready_s"] > 0


def test_an_unchanged_folder_is_taken_up_without_reading_a_list_and_a_changed_one_keeps_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Folder(str(tmp_path))
    first = prepare_manifest(output, scale.SyntheticSource(600), 256)
    read: list[str] = []
    original = read_part

    def noted(output: Folder, part: str, columns: list[str] | None = None) -> object:
        read.append(part)
        return original(output, part, columns)

    monkeypatch.setattr("pipelines.run.manifest_repair.read_part", noted)
    again = prepare_manifest(output, scale.SyntheticSource(600), 256)
    assert (again.parts, again.digests, read) == (first.parts, first.digests, [])
    more = prepare_manifest(output, scale.SyntheticSource(700), 256)
    assert (list(more.parts.values()), more.appended, more.gone) == ([256, 256, 88, 100], 100, 0)
    assert read == list(first.parts)
    fewer = prepare_manifest(output, scale.SyntheticSource(650), 256)
    assert (fewer.parts, fewer.gone) == (more.parts, 50)


def test_a_start_that_goes_on_says_what_is_new_and_gone_and_a_first_one_does_not(tmp_path: Path) -> None:
    table = OutputTable("names", pa.schema([("image_id", pa.string())]), lambda rows: {})
    told: list[Event] = []
    for count in (600, 700, 650):
        run, pools = RunOptions(str(tmp_path), shard_size=256), PoolOptions()
        course = Course(
            scale.SyntheticSource(count), run, pools, table, lambda hashes: {}, lambda plan, text: []
        )
        kept = Kept()
        with shown_by(kept):
            _list(course)
        told += [event for event in kept.events if event.name == "listed"]
    assert [text_line(event) for event in told] == [
        "ovss: 100 images new since the last run",
        "ovss: 0 images new since the last run, 50 of those that were ever listed are gone",
    ]
    values = json.loads(json_line(told[0]))
    assert (values["event"], values["new"], values["gone"], values["of"]) == ("listed", 100, 0, "images")


def test_fragments_that_ray_commits_are_counted(ray_session: None, tmp_path: Path) -> None:
    count, speed, peak = fragments.measure(300, 64, str(tmp_path))
    assert count >= 5
    assert speed > 0
    assert peak > 0
