import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.check_golden import GOLDEN, check, main


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
    shutil.copytree(GOLDEN, copy)
    changes = {
        "sfp_released.npz": "w0/features",
        "vanilla_encoder.npz": "w5/cls",
        "dense_heads.npz": "naclip_original",
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
    assert len(misses) == 3
    assert all(any(key in line for line in misses) for key in changed)


def test_a_folder_without_arrays_is_an_error_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "has no tiny_vit.npz; give a folder" in capsys.readouterr().err
