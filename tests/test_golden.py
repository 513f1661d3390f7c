import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.check_golden import GOLDEN, TOWERS, check, main

BACKBONE = GOLDEN.with_name("golden_backbone")


def test_every_reference_array_is_matched_within_its_tolerance() -> None:
    report = check(GOLDEN)
    assert [row.key for row in report.missed] == []
    checked = {row.key.split("/")[0] for row in report.rows}
    stored = {path.stem for path in GOLDEN.rglob("*.npz")} - {"tiny_vit", "inputs"}
    assert checked == stored
    assert all(report.skipped.values())


def test_changed_reference_arrays_are_misses_and_end_with_status_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "golden"
    shutil.copytree(GOLDEN, copy, ignore=shutil.ignore_patterns("more", "refiners"))
    (copy / "more").mkdir()
    for file in ("pearl.npz", "car.npz"):
        shutil.copy(GOLDEN / "more" / file, copy / "more")
    changes = {
        "sfp_released.npz": "w0/features",
        "vanilla_encoder.npz": "w5/cls",
        "dense_heads.npz": "naclip_original",
        "more/pearl.npz": "pa_svd_a0p08",
        "more/car.npz": "blur_gray/round1_scores",
    }
    changed = []
    for file, ending in changes.items():
        with np.load(copy / file) as stored:
            arrays = dict(stored)
        (key, *_) = [name for name in arrays if name.endswith(ending)]
        arrays[key] = arrays[key] + 1e-3
        np.savez(copy / file, **arrays)
        changed.append(key)
    assert main([str(copy)]) == 1
    misses = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISS")]
    assert len(misses) == 5
    assert all(any(key in line for line in misses) for key in changed)


def test_a_folder_without_arrays_is_an_error_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "has no tiny_vit.npz; give a folder" in capsys.readouterr().err


def test_a_folder_of_further_hosts_finds_its_tower_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(GOLDEN, tmp_path / "golden_7", ignore=shutil.ignore_patterns("more"))
    further = tmp_path / "golden_more_7"
    further.mkdir()
    for file in ("pearl.npz", "rfclip.npz"):
        shutil.copy(GOLDEN / "more" / file, further)
    np.savez(further / "fsa.npz", scores=np.zeros(3))
    assert main([str(further)]) == 0
    printed = capsys.readouterr().out
    assert f"those of {tmp_path / 'golden_7'}" in printed
    assert "skip  fsa/scores" in printed
    with np.load(tmp_path / "golden_7" / "inputs.npz") as stored:
        windows = dict(stored)
    np.savez(tmp_path / "golden_7" / "inputs.npz", **windows | {"w3": windows["w4"], "w4": windows["w3"]})
    for path in further.glob("*.npz"):
        if path.stem != "pearl":
            path.unlink()
    assert main([str(further)]) == 1


def test_every_reference_array_with_a_second_tower_is_matched() -> None:
    report = check(BACKBONE)
    assert [row.key for row in report.missed] == []
    checked = {row.key.split("/")[0] for row in report.rows}
    assert checked == {path.stem for path in BACKBONE.glob("*.npz")} - {Path(TOWERS).stem}
    assert all(report.skipped.values())


def test_arrays_with_a_second_tower_stand_on_the_folder_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(GOLDEN, tmp_path / "other")
    shutil.copytree(BACKBONE, tmp_path / "other_backbone")
    with np.load(tmp_path / "other" / "tiny_vit.npz") as stored:
        arrays = dict(stored)
    arrays["proj"] = arrays["proj"] * 2
    np.savez(tmp_path / "other" / "tiny_vit.npz", **arrays)
    assert main([str(tmp_path / "other_backbone")]) == 1
    misses = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISS")]
    assert any("/features" in line for line in misses)
    assert main([str(tmp_path / "other_backbone"), str(GOLDEN)]) == 0
