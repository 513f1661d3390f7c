import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jobs.benchmark import main
from ovss_core.config import ModelConfig, PurificationConfig
from pipelines.benchmark.options import BenchmarkConfig
from pipelines.benchmark.ray_times import ray_over_engine
from pipelines.benchmark.throughput import window_operations
from pipelines.benchmark.window_loop import KEEP_ABOVE, label_picture
from pipelines.benchmark.workload import load_workload
from pipelines.demonstration.scenes import render_scene
from pipelines.run.options import PoolOptions
from tests.tiny import register_tiny_models, tiny_clip

TOWER = "tiny-ViT-16"
"""Three blocks of width 32: what is measured is that everything is measured, not how long it takes."""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """One square picture, which has four windows by either paper's rule."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.fromarray(render_scene(1, 160).image).save(folder / "scene.png")
    return folder


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_the_benchmark_runs_and_writes_its_ratios_as_json(
    precision: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_tiny_models()
    output = tmp_path / "speed.json"
    flags = ["--quick", "--model", TOWER, "--pretrained", "random", "--ray-images", "0", "--threads", "1"]
    flags += ["--images", str(photographs), "--precision", precision, "--output", str(output)]
    assert main(flags) == 0
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
        "refinement of every class with a region, scores included",
        "redundancy, scores and refinement included",
        "ambiguity groups, these three included",
        "ambiguity crops",
        "stitching",
        "label assignment, stitching included",
        "mask encoding",
    }
    rates = result["throughput"]
    assert rates["windows"] == 4
    assert rates["kept_classes_an_image"] > 1
    assert rates["ambiguity_crops_an_image"] > 0
    operations = window_operations(tiny_clip(TOWER).model.visual, (14, 14))
    assert rates["window_gigaflop"] == pytest.approx(operations / 1e9)
    assert 0 < rates["floor_share_of_matrix_product"] < 1.5
    assert len(result["end_to_end"]) == 8
    assert len({row["name"] for row in result["levers"]}) == 13
    assert all(row["over"] > 0 for row in result["levers"])
    assert "| engine_over_floor |" in capsys.readouterr().out


def test_operations_of_a_window_are_those_that_torch_counts_where_its_attention_is_not_one_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visual = tiny_clip(TOWER).model.visual
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        visual(torch.zeros(1, 3, 48, 48))
    assert window_operations(visual, (3, 3)) == counter.get_total_flops()


@pytest.mark.slow
def test_the_ray_job_is_measured_beside_the_bare_engine(ray_session: None) -> None:
    pools = PoolOptions(actors=1, finish_actors=0, torch_threads=1)
    rates = ray_over_engine(BenchmarkConfig(ray_images=10), "demo", pools)
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
    labels = label_picture(engine, workload.pictures[0])
    assert len(expected.present) > 3
    assert (labels.numpy() == expected.label_map).mean() > 0.995
