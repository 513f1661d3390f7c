from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import pyarrow as pa
import pytest

from ovss_core.engine import pending, proposal
from ovss_core.engine.engine import SegmentationEngine
from pipelines.label import stages
from pipelines.label.label_stage import LabelStage
from pipelines.label.stages import FinishStage, ProposeStage, SegmentStage
from pipelines.label.word_use import OwnWords
from tests.gpu_count.pretended import GPU, pretended_gpu
from tests.pipelines.test_own_words import COMMON, OWN, known, settings
from tests.pipelines.test_stages import assert_masks, config, masks, photographs, table, text

IMAGES = 3


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stage does with wave after wave, an image each, in the order in which it begins it."""
    found: list[str] = []

    def note(place: Any, name: str, step: str) -> None:
        function: Callable[..., Any] = getattr(place, name)

        @wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            found.append(step)
            return function(*args, **kwargs)

        monkeypatch.setattr(place, name, noted)

    note(SegmentationEngine, "encode", "stage-1")
    note(pending.PendingProposals, "wait", "decisions")
    note(SegmentationEngine, "begin", "stage-2")
    note(pending.PendingLabels, "wait", "labels")
    note(SegmentationEngine, "proposals_of_rows", "unpacked")
    note(stages._PendingRows, "wait", "packed")
    monkeypatch.setattr(stages, "_PIXELS_AT_ONCE_ON_GPU", 1)
    return found


@pytest.fixture(scope="module")
def proposed() -> pa.Table:
    return ProposeStage(config(), text(), "cpu")(table(photographs()[:IMAGES]))


@pytest.fixture(scope="module")
def labelled() -> list[Any]:
    return masks(SegmentStage(config(), text(), "cpu")(table(photographs()[:IMAGES]))["result"].to_pylist())


def run(kind: type[LabelStage], rows: pa.Table, steps: list[str]) -> tuple[str, list[Any]]:
    """Run a stage on the pretended GPU; return its steps, and what it made."""
    with pretended_gpu():
        stage = kind(config(), text(), str(GPU), images_at_once=1)
        steps.clear()  # of the trial
        found = stage(rows)
    assert found["failure"].to_pylist() == [None] * IMAGES
    return " ".join(steps), found[kind.output].to_pylist()


def test_one_actor_awaits_labels_when_the_next_two_waves_are_queued(
    steps: list[str], labelled: list[Any]
) -> None:
    order, rows = run(SegmentStage, table(photographs()[:IMAGES]), steps)
    assert order == (
        "stage-1 stage-1 decisions stage-2 stage-1 decisions stage-2 labels decisions stage-2 labels labels"
    )
    assert_masks(masks(rows), labelled)


def test_the_first_stage_awaits_rows_when_the_next_two_waves_are_queued(
    steps: list[str], proposed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposal, "beside", lambda device: nullcontext())  # a stream needs a real card
    order, rows = run(ProposeStage, table(photographs()[:IMAGES]), steps)
    assert order == "stage-1 stage-1 decisions stage-1 decisions packed decisions packed packed"
    assert [row["kept"] for row in rows] == [row["kept"] for row in proposed["proposal"].to_pylist()]


def test_the_second_stage_begins_a_batch_before_it_awaits_the_one_before(
    steps: list[str], labelled: list[Any], proposed: pa.Table
) -> None:
    order, rows = run(FinishStage, proposed, steps)
    assert order == "unpacked stage-2 unpacked stage-2 labels unpacked stage-2 labels labels"
    assert_masks(masks(rows), labelled)


def test_images_with_words_of_their_own_get_their_labels_from_the_engine_for_these(steps: list[str]) -> None:
    batch = table(photographs(), own_words=pa.array(OWN, pa.list_(pa.string())))
    own = OwnWords("besides", len(COMMON))
    with pretended_gpu():
        stage = SegmentStage(settings(), known(), str(GPU), own_words=own)
        steps.clear()
        rows = stage(batch)["result"].to_pylist()
    parts = steps.count("decisions")
    assert parts > steps.count("stage-1")  # a wave is encoded as a whole
    assert steps.count("labels") == parts
    assert steps[-2:] == ["labels"] * 2  # one is awaited later than the other is begun
    expected = SegmentStage(settings(), known(), "cpu", own_words=own)(batch)["result"].to_pylist()
    assert [row["vocabulary"] for row in rows] == [row["vocabulary"] for row in expected]
    assert_masks(masks(rows), masks(expected))
