"""All measurements in one result: JSON for machines, tables for people."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ovss_core.check import validate
from ovss_core.config import SegmenterConfig
from pipelines.benchmark.encoder_levers import encoder_levers
from pipelines.benchmark.engine_levers import engine_levers
from pipelines.benchmark.engine_times import end_to_end_rows, headline_ratios, loop_ratios, stage_rows
from pipelines.benchmark.levers import measure_levers
from pipelines.benchmark.options import BenchmarkConfig
from pipelines.benchmark.ray_times import ray_over_engine, scaling
from pipelines.benchmark.throughput import throughput
from pipelines.benchmark.workload import load_workload
from pipelines.pages import render
from pipelines.run.record import machine_facts, package_versions

NO_GPU = "No GPU here: all of this is the CPU's. Where there is one, the same command measures it (add --precision bfloat16)."
AIMS = {
    "engine_over_floor": ("at most", 1.25),
    "loop_over_refinement_150": ("at least", 10.0),
    "loop_over_refinement_1200": ("at least", 10.0),
    "ray_over_engine": ("at least", 0.9),
    "classes_1200_over_21": ("at most", 1.5),
}


def measure(config: BenchmarkConfig, output: Path | None = None) -> dict[str, Any]:
    """Measure everything, in one process and one run.

    Args:
        config: What to measure.
        output: JSON file for the result; written anew after every part, so that a long run that is stopped
            leaves what it has.

    Returns:
        `ratios` (medians of paired runs), `machine`, `settings`, `throughput`, `stages`, `end_to_end`, `levers`, `ray`.
    """
    validate(SegmenterConfig(model=config.model))
    for name in config.ray_models if config.ray_images else ():
        validate(SegmenterConfig(model=replace(config.model, name=name, pretrained="random")))
    result: dict[str, Any] = {"ratios": {}, "machine": machine(), "settings": _plain(asdict(config))}
    for part in _parts(config):
        result["ratios"] |= part.pop("ratios", {})
        result |= part
        if output:
            write_json(result, output)
    return result


def _parts(config: BenchmarkConfig) -> Iterator[dict[str, Any]]:
    workload = load_workload(config)
    yield {"ratios": headline_ratios(workload) | loop_ratios(workload)}
    stages = stage_rows(workload)
    yield {"throughput": throughput(workload, stages), "stages": [asdict(row) for row in stages]}
    levers = measure_levers(workload, chain(encoder_levers(workload), engine_levers(workload)))
    yield {"levers": [asdict(lever) for lever in levers]}
    yield {"end_to_end": end_to_end_rows(workload)}
    rates: dict[str, Any] = {}
    for model in config.ray_models if config.ray_images else ():
        rates[model] = ray_over_engine(config, model)
        yield {
            "ratios": {"ray_over_engine": rates[config.ray_models[0]]["ray_over_engine"]},
            "ray": {"models": rates},
        }
    if config.ray_images and config.scaling:
        yield {"ray": {"models": rates, **scaling(config)}}


def machine() -> dict[str, Any]:
    """Describe where this ran: processor, cores, threads, accelerator, load, versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        **machine_facts(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "versions": package_versions(),
    }


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """Write the result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the tables that a person reads."""
    tables = {name: result[name] for name in ("ratios", "stages", "end_to_end", "throughput", "levers")}
    notes = NO_GPU if result["machine"]["gpu"] is None else ""
    return render("benchmark.md", **tables, ray=result.get("ray", {}), aims=AIMS, notes=notes).rstrip()


def _plain(values: Any) -> Any:
    """Turn paths into names that hold on any machine."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return values.name if isinstance(values, Path) else values
