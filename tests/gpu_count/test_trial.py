"""Kernels that fail or give other numbers are not used: the engine then labels by the plain forms."""

import logging
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU

from ovss_core import kernels
from ovss_core.engine import trial
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.trial import trust_kernels
from ovss_core.kernels import products
from ovss_core.kernels.products import Tile
from pipelines.benchmark.workload import Workload
from tests.gpu_count.counting import labelling, workload_of
from tests.gpu_count.pretended import GPU, Counts, pretended_gpu

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


def _without_edits(launch: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: launch(*arguments[:4], None, *arguments[5:])


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
        ("labels_triton", "launch_purified", _without_edits, "labels of 5 maps differ inside boxes"),
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


@pytest.mark.parametrize(("wins", "right"), [(True, True), (True, False), (False, True)])
def test_a_product_is_used_where_it_won_and_is_right(
    wins: bool, right: bool, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[object, Tile | None] = {}
    monkeypatch.setattr(products, "_chosen", chosen)
    monkeypatch.setattr(products, "FEWEST_PROGRAMS", 1)
    model = replace(workload.config.model, precision="bfloat16")
    config = replace(labelling(), model=model)
    with pretended_gpu() as gpu:
        stand_in = sys.modules["ovss_core.kernels.products_triton"]
        launch = stand_in.launch_quick_gelu_product
        if not right:
            monkeypatch.setattr(stand_in, "launch_quick_gelu_product", lambda *given: launch(*given).flip(-1))
        own = replace(workload.clip, model=deepcopy(workload.clip.model))
        for block in own.model.visual.transformer.resblocks:
            block.mlp.gelu = QuickGELU()
        engine = SegmentationEngine(config, own, workload.text(CLASSES), GPU)
        taken = iter([1.0, *[0.5 if wins else 2.0] * len(products.TILES)])
        monkeypatch.setattr(trial, "milliseconds", lambda run: next(taken))
        engine = trust_kernels(engine)
        used = wins and right
        assert list(chosen.values()) == [products.TILES[0] if used else None]
        gpu.counts = Counts()
        engine.segment(workload.pictures)
        launches = sum(times for place, times in gpu.counts.places.items() if "_quick_gelu_product" in place)
        assert (launches >= 11) == used
        assert bool(launches) == used


def test_nothing_is_tried_on_a_cpu(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(labelling(), model=workload.config.model)
    engine = SegmentationEngine(config, workload.clip, workload.text(CLASSES))
    monkeypatch.setattr(engine, "encode", _fails)
    assert trust_kernels(engine) is engine
