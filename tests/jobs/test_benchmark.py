import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.measure import main
from ovss_core.config import ModelConfig, PurificationConfig
from pipelines.benchmark.options import BenchmarkConfig
from pipelines.benchmark.ray_times import ray_over_engine
from pipelines.benchmark.window_loop import KEEP_ABOVE, label_picture
from pipelines.benchmark.workload import load_workload


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_measurement_runs_and_writes_its_ratios_as_json(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "speed.json"
    flags = ["--quick", "--model", "demo", "--pretrained", "random", "--ray-images", "0", "--threads", "1"]
    assert main([*flags, "--precision", precision, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    expected = {
        "engine_over_floor",
        "loop_over_floor",
        "loop_over_refinement_150",
        "loop_over_refinement_1200",
        "classes_1200_over_21",
    }
    assert expected <= set(result["ratios"])
    assert all(math.isfinite(value) and value > 0 for value in result["ratios"].values())
    stages = {row["name"] for row in result["stages"]}
    assert stages >= {
        "floor: encode_image",
        "refinement",
        "stitching",
        "label assignment, stitching included",
    }
    rates = result["throughput"]
    assert rates["windows"] == 6
    assert 0.1 < rates["window_gigaflop"] < 10
    assert 0 < rates["floor_share_of_matrix_product"] < 1.5
    assert len(result["end_to_end"]) == 8
    assert len(result["levers"]) == 16
    assert all(row["over"] > 0 for row in result["levers"])
    assert "| engine_over_floor |" in capsys.readouterr().out


def test_the_ray_job_is_measured_beside_the_bare_engine(ray_session: None) -> None:
    rates = ray_over_engine(BenchmarkConfig(ray_images=20), "demo")
    assert set(rates) == {"ray_over_engine", "engine_images_a_second", "ray_images_a_second"}
    assert 0.1 < rates["engine_images_a_second"] < 1000
    assert rates["ray_over_engine"] == pytest.approx(
        rates["ray_images_a_second"] / rates["engine_images_a_second"]
    )


def test_the_one_window_loop_gives_the_labels_of_the_released_form() -> None:
    config = BenchmarkConfig(image_count=1, model=ModelConfig("demo"), vocabularies=(21,), threads=1)
    workload = load_workload(config)
    engine = workload.engine("sfp", "freecp", 21)
    released = PurificationConfig(
        variant="released", thresholds="fixed", redundancy_threshold=KEEP_ABOVE, ambiguity=False
    )
    engine = engine.with_vocabulary(engine.text, replace(engine.config, purification=released))
    [expected] = engine.segment(workload.pictures)
    labels = label_picture(engine, engine.prepare(workload.pictures[0]), engine.text.phrase_embeddings)
    assert len(expected.present) > 3
    assert (labels.numpy() == expected.label_map).mean() > 0.995
