import json
import math
from pathlib import Path

import pytest

from jobs.measure import main


def test_the_measurement_runs_and_writes_its_ratios_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "speed.json"
    flags = ["--quick", "--model", "demo", "--pretrained", "random", "--ray-images", "0", "--threads", "1"]
    assert main([*flags, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    expected = {
        "engine_over_floor",
        "loop_over_refinement_150",
        "loop_over_refinement_1200",
        "classes_1200_over_21",
    }
    assert expected <= set(result["ratios"])
    assert all(math.isfinite(value) and value > 0 for value in result["ratios"].values())
    assert {row["name"] for row in result["stages"]} >= {"floor: encode_image", "stitching and labels"}
    assert len(result["end_to_end"]) == 8
    assert "| engine_over_floor |" in capsys.readouterr().out
