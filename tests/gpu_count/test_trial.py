"""Kernels that fail or give other numbers are not used: the engine then labels by the plain forms."""

import logging
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

from ovss_core import kernels
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.trial import trust_kernels
from pipelines.benchmark.workload import Workload
from tests.gpu_count.counting import labelling, workload_of
from tests.gpu_count.pretended import GPU, pretended_gpu

CLASSES = 20


@pytest.fixture(scope="module")
def workload() -> Workload:
    drawn = workload_of(1, CLASSES)
    return replace(drawn, pictures=[drawn.pictures[0][:200, :260]])


@pytest.fixture
def engine(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> Iterator[SegmentationEngine]:
    monkeypatch.setattr(kernels, "_plain", False)
    config = replace(labelling(), model=workload.config.model)
    with pretended_gpu():
        own = replace(workload.clip, model=deepcopy(workload.clip.model))
        yield SegmentationEngine(config, own, workload.text(CLASSES), GPU)


def _fails(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")


def _turned(launch: Callable[..., Any]) -> Callable[..., Any]:
    def turned(*arguments: Any) -> Any:
        total, normalized = launch(*arguments)
        return total, normalized.flip(-1)

    return turned


def _twice(launch: Callable[..., Any]) -> Callable[..., Any]:
    def twice(*arguments: Any) -> Any:
        found = launch(*arguments)
        arguments[3].mul_(2)  # the mean so far
        return found

    return twice


def test_kernels_that_work_are_used_and_the_trial_leaves_nothing_behind(
    engine: SegmentationEngine, caplog: pytest.LogCaptureFixture
) -> None:
    room = engine.room
    assert trust_kernels(engine) is engine
    assert engine.room == room
    assert not engine.take_timings()
    assert not caplog.records
    assert kernels.use_kernel(torch.empty(0, device=GPU))


@pytest.mark.parametrize(
    ("module", "name", "change", "told"),
    [
        (
            "evidence_triton",
            "launch_peaks",
            lambda launch: _fails,
            "RuntimeError: Failed to find C compiler.",
        ),
        ("norms_triton", "launch_add_norm", _turned, "features differ from those of the plain forms"),
        ("attention_triton", "launch_mean_with_sums", _twice, "attention differs from that"),
    ],
)
def test_kernels_that_do_not_work_are_left_out_and_the_labels_are_those_of_the_cpu(
    module: str,
    name: str,
    change: Callable[[Any], Any],
    told: str,
    engine: SegmentationEngine,
    workload: Workload,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stand_in = sys.modules[f"ovss_core.kernels.{module}"]
    monkeypatch.setattr(stand_in, name, change(getattr(stand_in, name)))
    with caplog.at_level(logging.WARNING):
        trusted = trust_kernels(engine)
    assert told in caplog.text
    assert caplog.text.count("\n") == 1
    assert not kernels.use_kernel(torch.empty(0, device=GPU))
    [ours] = trusted.segment(workload.pictures)
    config = replace(labelling(), model=workload.config.model)
    [expected] = SegmentationEngine(config, workload.clip, workload.text(CLASSES)).segment(workload.pictures)
    assert (ours.label_map == expected.label_map).mean() > 0.999


def test_nothing_is_tried_on_a_cpu(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(labelling(), model=workload.config.model)
    engine = SegmentationEngine(config, workload.clip, workload.text(CLASSES))
    monkeypatch.setattr(engine, "encode", _fails)
    assert trust_kernels(engine) is engine
