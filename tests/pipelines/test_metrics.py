"""What Prometheus gets, and whether the dashboard shows it."""

import json
import re
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.run import metrics
from pipelines.run.manifest import prepare_manifest
from pipelines.run.progress import ProgressReport
from pipelines.run.runner import ActorStage, run_job
from pipelines.run.schema import result_type
from pipelines.run.stage import RowStage
from pipelines.sources import FolderSource
from tests.conftest import encode_image
from tests.pipelines.mean_color import SCHEMA, mean_job, mean_of


class TimedMeans(RowStage):
    name = "means"
    output_type = result_type(SCHEMA)

    def work(self, rows):  # type: ignore[no-untyped-def]
        time.sleep(3)  # longer than the interval of exports: what an actor counts in its last one is lost
        self.took("look", 0.25 * len(rows))
        return [{"mean": mean_of(row["image"]), "png": b""} for row in rows]


def dashboard_metrics() -> set[str]:
    dashboard = json.loads(metrics.DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [
        entry["query"]["query"] for entry in dashboard["templating"]["list"] if entry["type"] == "query"
    ]
    return {name for query in queries for name in re.findall(r"\bray_\w+", query)}


def _exported(metric: metrics.Metric) -> str:
    """Return its name in Prometheus, as Ray's agents give it."""
    return f"ray_{metric.name}{'_total' if metric.kind == 'counter' else ''}"


def test_the_dashboard_shows_every_metric_and_asks_for_none_that_nobody_makes() -> None:
    from ray.data._internal.execution.interfaces.op_runtime_metrics import OpRuntimeMetrics

    ours = {_exported(metric) for metric in metrics.METRICS.values()}
    shown = dashboard_metrics()
    assert {name for name in shown if name.startswith("ray_ovss_")} == ours
    of_ray = {f"ray_data_{metric.name}" for metric in OpRuntimeMetrics.get_metrics()}
    assert shown - ours - {"ray_data_operator_queued_blocks"} <= of_ray  # the queue is the executor's own


def test_each_query_groups_by_tags_that_its_metric_has() -> None:
    dashboard = json.loads(metrics.DASHBOARD.read_text())
    by_name = {_exported(metric): metric for metric in metrics.METRICS.values()}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for name in re.findall(r"\bray_ovss_\w+", target["expr"]):
                groups = re.findall(r" by \(([^)]*)\)", target["expr"])
                asked = {tag.strip() for group in groups for tag in group.split(",")}
                assert asked <= set(by_name[name].tags), target["expr"]


def test_nothing_is_counted_outside_ray_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    metrics.count("ovss_images", 3, result="done")
    metrics.measure("ovss_images_known", 3)
    assert metrics._instrument("ovss_images") is None


def test_a_metric_that_ray_refuses_does_not_end_the_work(ray_session: None) -> None:
    assert metrics._instrument("ovss_images") is not None  # it is Ray that is asked
    metrics.count("ovss_images", 1, unknown="tag")
    metrics.count_stage("means", 0, {"look": -1.0})
    metrics.measure("ovss_images_known", 3, unknown="tag")


def test_a_run_on_ray_exports_what_its_workers_and_its_driver_counted(
    ray_session: None, tmp_path: Path
) -> None:
    import ray

    (tmp_path / "images").mkdir()
    for number in range(6):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(encode_image(number))
    (tmp_path / "images/broken.jpg").write_bytes(b"no picture")
    source = FolderSource(str(tmp_path / "images"))
    job = mean_job(str(tmp_path / "out"), source, actors=1)
    job = replace(job, stages=[ActorStage("means", TimedMeans, {}, job.stages[0].pool, 4)])
    manifest = prepare_manifest(job.output, source, 8)
    port = next(node["MetricsExportPort"] for node in ray.nodes())
    time.sleep(3)  # until what earlier tests of the session counted is exported
    before = exported(port)
    with ProgressReport(manifest.images) as progress:
        run_job(job, manifest, progress)
    assert progress.reasons == {"means: ImageError": 1}
    wanted = {
        'ray_ovss_images_total{result="failed"}': 1.0,
        'ray_ovss_failures_total{reason="means: ImageError"}': 1.0,
        "ray_ovss_images_known{}": 7.0,
        "ray_ovss_images_stored{}": 7.0,
    }
    deadline = time.monotonic() + 120
    least = {
        'ray_ovss_stage_images_total{stage="means"}': 3.0,
        'ray_ovss_step_seconds_total{stage="means",step="look"}': 0.75,
        "ray_ovss_read_bytes_total{}": 1.0,
    }
    while time.monotonic() < deadline:
        found = {
            name: value - before.get(name, 0.0) if "_total" in name else value
            for name, value in exported(port).items()
        }
        # each process exports when its own interval ends
        if wanted.items() <= found.items() and all(found.get(name, 0.0) >= least[name] for name in least):
            break
        time.sleep(0.5)
    assert wanted.items() <= found.items(), {name: value for name, value in found.items() if "ovss" in name}
    for name, value in least.items():
        assert found.get(name, 0.0) >= value, name


def exported(port: int) -> dict[str, float]:
    """Return the newest value of our series, without the tags that Ray adds, summed over workers for counters."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
    own = {"result", "reason", "stage", "step", "kind"}
    found: dict[str, float] = {}
    for line in page.splitlines():
        if match := re.fullmatch(r"(ray_ovss_\w+)\{(.*)\} (\S+)", line):
            tags = [
                f'{key}="{value}"' for key, value in re.findall(r'(\w+)="([^"]*)"', match[2]) if key in own
            ]
            name = f"{match[1]}{{{','.join(sorted(tags))}}}"
            found[name] = (
                found.get(name, 0.0) + float(match[3]) if match[1].endswith("_total") else float(match[3])
            )
    return found


def test_a_labelling_stage_counts_windows_crops_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from ovss_core import SegmenterConfig, Vocabulary
    from ovss_core.config import ModelConfig
    from pipelines.label.job import encode_text
    from pipelines.label.stages import SegmentStage

    counted: dict[str, float] = {}

    def count(name: str, value: float, **tags: str) -> None:
        key = ",".join([name, *tags.values()])
        counted[key] = counted.get(key, 0.0) + value

    monkeypatch.setattr(metrics, "count", count)
    config = SegmenterConfig(model=ModelConfig("demo"))
    text, _ = encode_text(config, Vocabulary.load("background,tree,house,car"), None, "cpu")
    stage = SegmentStage(config, text, device="cpu", torch_threads=1)
    images = [encode_image(0, 60, 80), encode_image(1, 60, 200), b"no picture"]
    rows = stage(pa.table({"image": images})).to_pylist()
    kept = sum(len(row["result"]["kept"]) for row in rows if row["result"])
    assert counted["ovss_stage_images,segment"] == 2
    assert counted["ovss_kept_words"] == kept > 0
    assert counted["ovss_windows"] >= 2
    steps = {name.rpartition(",")[2] for name in counted if name.startswith("ovss_step_seconds")}
    assert "decode" in steps
    assert "mask_encoding" in steps
    assert all(np.isfinite(value) for value in counted.values())
