from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ovss_core.config import ProxyConfig, PurificationVariant, RegionConfig
from ovss_core.engine import finish
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.finite import finite_rows
from ovss_core.head_names import clip_hosts, proxy_hosts
from ovss_core.regions import RegionMap
from pipelines.benchmark.workload import Workload
from tests.gpu_count.__main__ import main
from tests.gpu_count.counting import CountedCall, count_call, labelling, workload_of
from tests.gpu_count.pretended import GPU, Counts, pretended_gpu
from tests.tiny_towers import DINO, add_tiny_families

CLASSES = 150


@pytest.fixture(scope="module")
def workload() -> Workload:
    return workload_of(4, CLASSES)


@pytest.fixture(scope="module")
def small(workload: Workload) -> Workload:
    """One picture of few windows: whether a head waits does not depend on how many there are."""
    return replace(workload, pictures=[workload.pictures[0][:200, :260]])


@pytest.fixture(scope="module")
def batch(workload: Workload) -> CountedCall:
    return count_call(workload, labelling(), CLASSES)


@pytest.fixture(scope="module")
def single(workload: Workload) -> CountedCall:
    return count_call(replace(workload, pictures=workload.pictures[:1]), labelling(), CLASSES)


def test_nothing_waits_and_what_is_copied_does_not_grow_with_the_images(
    single: CountedCall, batch: CountedCall
) -> None:
    assert batch.crops > single.crops > 0
    for call in (single, batch):
        assert not call.counts.waits
        assert call.counts.uploads <= 8
        assert call.counts.downloads <= 3
        assert call.counts.awaited <= 3


def test_operations_stay_below_what_they_were_when_this_was_written(
    single: CountedCall, batch: CountedCall
) -> None:
    assert single.counts.operations <= 385  # 370
    assert batch.counts.operations <= 385  # 370


def test_the_pretended_gpu_gives_the_labels_of_the_cpu(workload: Workload, batch: CountedCall) -> None:
    config = replace(labelling(), model=workload.config.model)
    expected = SegmentationEngine(config, workload.clip, workload.text(CLASSES)).segment(workload.pictures)
    for ours, theirs in zip(batch.results, expected, strict=True):
        assert (ours.label_map == theirs.label_map).mean() > 0.9999
        assert [entry.index for entry in ours.kept] == [entry.index for entry in theirs.kept]
        assert ours.groups == theirs.groups


def test_labels_are_awaited_when_stage_1_of_the_wave_after_the_next_is_queued(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(labelling(window_batch=1), model=workload.config.model)  # an image fills a wave
    queued: list[int] = []
    with pretended_gpu() as gpu:
        clip = replace(workload.clip, model=deepcopy(workload.clip.model))
        engine = SegmentationEngine(config, clip, workload.text(CLASSES), GPU)
        monkeypatch.setattr(
            torch.cuda.Event, "synchronize", lambda event: queued.append(gpu.counts.operations)
        )

        def queued_when_awaiting(images: int) -> list[int]:
            queued.clear()
            gpu.counts = Counts()
            engine.segment([workload.pictures[0]] * images)
            return queued.copy()

        queued_when_awaiting(4)  # fills what is remembered between calls
        propose, label_maps, winners = queued_when_awaiting(1)
        finish = label_maps - propose
        assert winners == label_maps
        assert queued_when_awaiting(4) == [
            waves * propose + labelled * finish
            for waves, labelled, downloads in [
                (2, 0, 1),  # decisions of the first wave
                (3, 1, 1),  # of the second
                (3, 2, 2),  # labels of the first: stage 2 of the second and stage 1 of the third are queued
                (4, 2, 1),
                (4, 3, 2),
                (4, 3, 1),
                (4, 4, 4),  # of the last two
            ]
            for _ in range(downloads)
        ]


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_nothing_waits_where_windows_decide(variant: PurificationVariant, workload: Workload) -> None:
    one = replace(workload, pictures=workload.pictures[:1])
    call = count_call(one, labelling(variant=variant), CLASSES)
    assert call.crops > 0
    assert not call.counts.waits


@pytest.mark.parametrize("host", [*clip_hosts(), "sfp,naclip"])
def test_no_head_mixes_devices_or_waits(host: str, small: Workload) -> None:
    waits = count_call(small, labelling(host, "none"), CLASSES).counts.waits
    assert not waits


@pytest.mark.parametrize("scoped", [False, True])
@pytest.mark.parametrize("host", sorted(proxy_hosts()))
def test_no_head_with_a_second_tower_mixes_devices_or_waits(
    host: str, scoped: bool, small: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tiny_families(monkeypatch)
    proxy, regions = ProxyConfig(DINO, "random"), RegionConfig(scope=scoped)
    config = replace(labelling(host, "none"), proxy=proxy, regions=regions)
    maps = [
        RegionMap.of_array(np.arange(picture.size // 3).reshape(picture.shape[:2]) // 9_000)
        for picture in small.pictures
    ]
    assert not count_call(small, config, CLASSES, maps if scoped else None).counts.waits


def test_a_planted_item_is_counted_and_its_place_is_named(
    workload: Workload, single: CountedCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(features: Tensor) -> Tensor:
        assert features.abs().max().item() > 0
        return finite_rows(features)

    monkeypatch.setattr(finish, "finite_rows", reading)
    one = replace(workload, pictures=workload.pictures[:1])
    counts = count_call(one, labelling(), CLASSES).counts
    [(place, times)] = counts.waits.items()
    assert times == 1
    assert place.startswith("ovss_core/engine/finish.py:")
    assert place.endswith(" winners (_local_scalar_dense)")
    assert counts.operations == single.counts.operations + 2


@pytest.mark.parametrize(
    ("run", "waits"),
    [
        (lambda numbers: numbers + 1, 0),
        (lambda numbers: numbers.to(GPU), 0),
        (lambda numbers: numbers.sum().item(), 1),
        (lambda numbers: bool(numbers.any()), 1),
        (lambda numbers: numbers.tolist(), 1),
        (lambda numbers: numbers.cpu(), 1),
        (lambda numbers: numbers.nonzero(), 1),
        (lambda numbers: numbers[numbers > 1], 1),
        (lambda numbers: numbers[torch.tensor([0, 1])], 1),
        (lambda numbers: numbers.bincount(), 2),
        (lambda numbers: numbers.unique(), 2),
        (lambda numbers: torch.zeros(3).to(GPU), 1),
        (lambda numbers: torch.zeros(3).to(GPU, non_blocking=True), 1),
        (lambda numbers: torch.empty(3, pin_memory=True).to(GPU), 1),
        (lambda numbers: torch.empty(3, pin_memory=True).to(GPU, non_blocking=True), 0),
        (lambda numbers: torch.empty(4, dtype=torch.int64).copy_(numbers, non_blocking=True), 1),
        (lambda numbers: torch.empty(4, dtype=torch.int64, pin_memory=True).copy_(numbers, True), 0),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_what_makes_the_host_wait_is_counted(
    run: Callable[[Tensor], object], waits: int, inference: bool
) -> None:
    with pretended_gpu() as gpu, torch.inference_mode(inference):
        numbers = torch.arange(4, device=GPU)
        run(numbers)
        assert gpu.counts.waits.total() == waits


@torch.inference_mode()
def test_operations_are_counted_and_views_are_not() -> None:
    with pretended_gpu() as gpu:
        numbers = torch.arange(12, device=GPU)
        assert gpu.counts.operations == 1
        matrix = numbers.view(3, 4).T[1:].float()
        assert gpu.counts.operations == 2
        product = matrix @ matrix.T
        product += 1
        assert gpu.counts.operations == 4
        found = product.cpu().numpy()
    rows = np.arange(12.0).reshape(3, 4).T[1:]
    np.testing.assert_array_equal(found, rows @ rows.T + 1)


def test_tensors_of_two_devices_are_refused() -> None:
    with pretended_gpu(), pytest.raises(RuntimeError, match="two devices"):
        torch.zeros(3, device=GPU) + torch.zeros(3)


def test_the_command_prints_a_row_for_each_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", "1,2", "--classes", "21", "--purify", "none", "--precision", "bfloat16"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| 1", "| 2"]
    assert all(int(row[3]) > 100 for row in rows)
