from collections.abc import Sequence
from typing import cast

import pytest

from ovss_core.errors import ImageError
from pipelines.faults import Failure, process_all
from pipelines.run.ledger import AttemptLedger, AttemptRecord


class DeadWorkerError(BaseException):
    """Stands for the end of the process: nothing in the stage runs after it."""


def attempt(
    record: AttemptRecord, ids: Sequence[str], poison: set[str]
) -> tuple[list[object], list[list[str]]]:
    """Work on a batch as often as Ray would, until a worker survives; also return what each one started."""
    started: list[list[str]] = []

    def work(items: Sequence[str]) -> list[str]:
        started.append(list(items))
        if poison & set(items):
            raise DeadWorkerError
        return [item.upper() for item in items]

    while True:
        try:
            return list(process_all("work", ids, ids, work, cast(AttemptLedger, record))), started
        except DeadWorkerError:
            assert len(started) < 50


def test_an_image_that_kills_its_worker_alone_twice_is_set_aside_and_the_others_are_done() -> None:
    outcomes, started = attempt(AttemptRecord(), ["a", "b", "c", "d"], {"c"})
    assert outcomes[:2] + outcomes[3:] == ["A", "B", "D"]
    assert isinstance(outcomes[2], Failure)
    assert outcomes[2].error_type == "WorkerCrash"
    assert started[0] == ["a", "b", "c", "d"]
    assert started.count(["c"]) == 2


def test_several_such_images_in_one_batch_are_all_found() -> None:
    outcomes, started = attempt(AttemptRecord(), ["a", "b", "c", "d"], {"a", "b", "d"})
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [True, True, False, True]
    assert len([batch for batch in started if len(batch) > 1]) == 1


def test_a_batch_whose_worker_was_lost_once_by_chance_loses_no_image() -> None:
    record = AttemptRecord()
    record.begin("work", ["a", "b"])
    outcomes, started = attempt(record, ["a", "b", "c"], set())
    assert outcomes == ["A", "B", "C"]
    assert started == [["c"], ["a"], ["b"]]
    assert record.begin("work", ["a", "b", "c"]) == {}


def test_stages_are_told_apart() -> None:
    record = AttemptRecord()
    record.begin("first", ["a"])
    assert record.begin("second", ["a"]) == {}
    assert record.begin("first", ["a"]) == {"a": 0}


def test_a_value_that_is_a_failure_already_stays_one_and_mistakes_leave_the_stage() -> None:
    bad = Failure("decode", "ImageError", "empty")
    assert process_all("s", ["a", "b"], [1, 2], lambda items: [bad, *items[1:]]) == [bad, 2]
    with pytest.raises(NotImplementedError):
        process_all("s", ["a"], [1], lambda items: (_ for _ in ()).throw(NotImplementedError()))
    with pytest.raises(TypeError):
        process_all("s", ["a"], [1], lambda items: [len(item) for item in items])  # type: ignore[arg-type]


def test_reasons_are_one_line() -> None:
    assert Failure.of("s", ImageError("first\nsecond")).reason == "first"
    assert Failure.of("s", ValueError()).reason == "ValueError"
    assert len(Failure.of("s", ValueError("word " * 2000)).reason) == 500


def test_reasons_hold_no_bytes_of_an_image_and_no_secret() -> None:
    data = bytes(range(128, 250)) * 3
    told = (
        Failure.of("s", ValueError(f"cannot decode {data!r} as text")).reason,
        Failure.of("s", ValueError(f"cannot decode {data.decode('latin-1')} as text")).reason,
        Failure.of("s", ValueError("bad image \x00\x01\ufffd\ufffd\x02\x03 here")).reason,
    )
    for reason in told:
        assert "\\x" not in reason
        assert len(reason) < 120, reason
    assert Failure.of("s", ValueError("no file at /data/Set 01/IMG_0001.jpg")).reason.endswith("IMG_0001.jpg")
    secret = Failure.of("s", OSError("403 for https://me:pass@host/a.jpg?X-Amz-Signature=abcdef")).reason
    assert "pass" not in secret
    assert "abcdef" not in secret


def test_the_ledger_counts_what_a_stage_has_finished_and_knows_what_it_never_did() -> None:
    record = AttemptRecord()
    for stage in ("read", "mean"):
        record.begin(stage, ["a", "b", "c"])
    record.end("read", ["a", "b", "c"])
    record.end("mean", ["a", "c"])
    assert (record.finished("read"), record.finished("mean"), record.finished("other")) == (3, 2, 0)
    assert record.noted(["a", "b", "z"]) == {"b": "mean"}
