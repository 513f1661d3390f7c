"""The fuzz command itself: a sample of its cases in this process, and faults that it must find."""

from pathlib import Path

import pytest

from tests.fuzz.__main__ import as_text, main
from tests.fuzz.campaign import build_case, fuzz, run_case
from tests.fuzz.checksums import mend_png, mend_tar
from tests.fuzz.planted import load_nothing, load_planted
from tests.fuzz.seeds import image_files, tar_files
from tests.fuzz.targets import load_targets

CASES = {"images": 150, "masks": 50, "tar": 60, "vocabularies": 60, "descriptions": 30, "weights": 20}
"""Damaged files read by the default suite; the targets that are whole runs get `RUNS`."""
RUNS = 4


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the syncs, which only a power cut would tell."""
    monkeypatch.setattr("pipelines.transport.local._sync", lambda descriptor: None)


@pytest.mark.filterwarnings("ignore")
def test_no_reader_fails_over_a_sample_of_damaged_files_and_all_read_the_sound_ones(tmp_path: Path) -> None:
    found = []
    for target in load_targets(tmp_path):
        files = sorted(target.seeds)
        sound = files if target.name in CASES else files[:RUNS]
        for name in sound:
            target.check(name, target.seeds[name])
        for seed in range(CASES.get(target.name, RUNS)):
            name = files[seed % len(files)]
            outcome = run_case(target, name, build_case(target, name, seed))
            if outcome.fault:
                found.append((target.name, name, seed, outcome.fault))
    assert found == []


def test_a_campaign_finds_every_planted_fault_and_goes_on_behind_it() -> None:
    report = fuzz(load_planted, seconds=120.0, cases=14, case_s=4.0)  # a busy machine is no fault
    faults = {case.target: fault for case, fault in report.findings}
    assert faults.keys() == {"wordy", "raising", "leaving", "hanging", "growing"}
    assert faults["raising"] == "ValueError: not enough values to unpack"
    assert faults["leaving"] == "the process ended with SIGABRT"
    assert faults["hanging"] == "no answer within 4 s"
    assert faults["growing"].startswith("the process grew by ")
    assert faults["wordy"].startswith("no short line: ImageError")
    assert report.refused["refusing"] == report.cases["refusing"] > 0
    assert report.cases["sound"] > 0
    assert report.refused["sound"] == 0
    text = as_text(report)
    assert "--case raising a " in text
    assert text.endswith(f"14 cases, {len(report.findings)} findings")


def test_a_case_is_the_same_file_each_time_and_mostly_another_than_the_sound_one() -> None:
    target = load_planted()[0]
    cases = [build_case(target, "a", seed) for seed in range(200)]
    assert cases == [build_case(target, "a", seed) for seed in range(200)]
    assert sum(case != target.seeds["a"] for case in cases) > 150
    assert len(set(cases)) > 150


def test_mending_leaves_sound_files_alone_and_puts_checksums_right() -> None:
    png, shard = image_files()["png"], tar_files()["ustar"]
    assert mend_png(png) == png
    assert mend_tar(shard) == shard
    assert mend_png(png[:29] + b"\0\0\0\0" + png[33:]) == png
    assert mend_tar(shard[:150] + b"7" + shard[151:]) == shard


def test_a_case_can_be_read_again_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--case", "images", "png", "7", "--keep", str(tmp_path / "case.png")]) == 0
    assert "Outcome(refused=" in capsys.readouterr().out
    assert (tmp_path / "case.png").stat().st_size > 0


def test_with_a_target_that_does_not_exist_nothing_is_read() -> None:
    assert fuzz(load_planted, seconds=60.0, only="nobody").cases.total() == 0


def test_targets_that_cannot_be_loaded_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        fuzz(load_nothing, seconds=1.0)
