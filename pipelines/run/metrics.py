"""The numbers of a run that Ray hands to Prometheus: counted where they arise, in workers and the driver.

Outside Ray nothing is counted, and nothing that goes wrong here ends the work. ``python -m pipelines.run.metrics`` prints
the dashboard for Grafana that shows them.
"""

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

DASHBOARD = Path(__file__).with_name("dashboard") / "ovss.json"


@dataclass(frozen=True)
class Metric:
    """A number that is exported.

    Attributes:
        name: In this program.
        kind: A counter only grows; a gauge is what it was set to last.
        meaning: What it counts, and in which unit.
        tags: What its series differ by, besides what Ray adds (node, worker, job).
    """

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    tags: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "ovss_images", "counter", "Images that this start stored, by result (done, failed).", ("result",)
        ),
        Metric("ovss_images_known", "gauge", "Images of the run, as far as they are listed."),
        Metric("ovss_images_stored", "gauge", "Images with a row, those of earlier starts included."),
        Metric(
            "ovss_failures", "counter", "Images that failed, by stage and class of the error.", ("reason",)
        ),
        Metric("ovss_stage_images", "counter", "Images that have come through a stage.", ("stage",)),
        Metric("ovss_read_bytes", "counter", "Bytes of image files that were read."),
        Metric("ovss_windows", "counter", "Windows that were encoded."),
        Metric("ovss_crops", "counter", "Regions of ambiguous words that were cut out to be encoded."),
        Metric("ovss_kept_words", "counter", "Words that purification kept, over all images."),
        Metric(
            "ovss_step_seconds",
            "counter",
            "Seconds that workers spent, by stage and step.",
            ("stage", "step"),
        ),
        Metric(
            "ovss_gpu_memory_bytes",
            "gauge",
            "Memory of a worker's GPU: what torch holds now, and the most that tensors took.",
            ("stage", "kind"),
        ),
    )
}


def count(name: str, value: float, **tags: str) -> None:
    """Add to a counter; nothing happens outside Ray."""
    if value > 0 and (instrument := _instrument(name)) is not None:
        _try(instrument.inc, value, tags)


def measure(name: str, value: float, **tags: str) -> None:
    """Set a gauge; nothing happens outside Ray."""
    if (instrument := _instrument(name)) is not None:
        _try(instrument.set, value, tags)


def count_stage(stage: str, images: int, seconds: Mapping[str, float], **counts: int) -> None:
    """Count a call of a stage.

    Args:
        stage: Its name.
        images: Images that it took.
        seconds: Its time by step.
        counts: What else was counted, by the names of metrics without ``ovss_``.
    """
    count("ovss_stage_images", images, stage=stage)
    for step, spent in seconds.items():
        count("ovss_step_seconds", spent, stage=stage, step=step)
    for name, value in counts.items():
        count(f"ovss_{name}", value)


def measure_gpu(stage: str) -> None:
    """Set the gauges of this worker's GPU memory; nothing happens where torch uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    measure("ovss_gpu_memory_bytes", torch.cuda.memory_reserved(), stage=stage, kind="held")
    measure("ovss_gpu_memory_bytes", torch.cuda.max_memory_allocated(), stage=stage, kind="peak")


_lock = threading.Lock()


def _instrument(name: str) -> Any:
    """Return Ray's side of a metric; None outside Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    with _lock:
        return _made(name)


@cache
def _made(name: str) -> Any:
    metric = METRICS[name]
    try:
        from ray.util import metrics

        kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
        return kind(metric.name, metric.meaning, metric.tags)
    except Exception:
        return None


def _try(change: Any, value: float, tags: Mapping[str, str]) -> None:
    try:
        change(float(value), dict(tags))
    except Exception:
        return


if __name__ == "__main__":
    print(DASHBOARD.read_text(encoding="utf-8"))
