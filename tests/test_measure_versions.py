from pathlib import Path

import pytest

from tests import measure_versions
from tests.measure_versions import HERE, Case, main


@pytest.mark.slow
def test_a_checkout_gives_the_labels_of_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure_versions, "CASES", [Case("demo", 1, 5)])
    assert main(["--old", str(HERE), "--pairs", "1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[0] == "| demo, 1 pictures, 5 words"
    assert float(row[1]) > 0
    assert row[-1] == "100.0000% |"


def test_a_folder_that_is_no_checkout_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure_versions, "CASES", [Case("demo", 1, 5)])
    with pytest.raises(SystemExit, match="could not build an engine"):
        main(["--old", str(tmp_path), "--pairs", "1"])
    assert "is in this checkout" in capfd.readouterr().err
