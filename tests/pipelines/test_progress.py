"""What lasts while a run goes on, as events."""

import io
import time

import pytest

from pipelines.run.displays import Lines, text_line
from pipelines.run.events import shown_by
from pipelines.run.progress import ProgressReport, announced
from tests.pipelines.kept_events import Kept


class ClosedTerminal(io.StringIO):
    """A terminal whose window was closed: whatever is written fails."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_progress_moves_by_image_and_never_shows_more_than_there_are() -> None:
    progress = ProgressReport(10)
    progress.resume(4, 1)
    assert progress.line().startswith("4 of 10 images (40 %), waiting for the first ones (0 s), 1 failed")
    assert progress.seconds_left is None
    progress.reach(3)
    assert progress.line().startswith("7 of 10 images (70 %)")
    progress.reach(2)
    assert progress.shown == 7
    progress.advance(1, 0)
    assert (progress.shown, progress.done, progress.fresh) == (7, 5, 1)
    progress.reach(60)
    assert progress.line().startswith("10 of 10 images (100 %)")


def test_failures_are_told_by_reason_the_most_frequent_first() -> None:
    progress = ProgressReport(10)
    progress.advance(1, 3, {"decode: ImageError": 1, "read: HTTP 404": 2})
    progress.advance(1, 1, {"read: HTTP 404": 1})
    assert progress.line().endswith("4 failed (3 read: HTTP 404, 1 decode: ImageError)")
    progress.advance(0, 2, {"a": 1, "b": 1})
    assert progress.line().endswith("6 failed (3 read: HTTP 404, 1 decode: ImageError, 1 a, ...)")


def test_the_last_event_says_what_is_stored() -> None:
    kept = Kept()
    with shown_by(kept), ProgressReport(1000) as progress:
        progress.reach(999)
        assert progress.line().startswith("999 of 1,000 images (99 %)")
        progress.advance(400, 20, {"read: TimeoutError": 20})
    first, last = kept.events[0], kept.events[-1]
    assert (first.name, first.phase, first.fields["done"]) == ("images", "begin", 0)
    assert (last.phase, last.key) == ("end", first.key)
    assert last.text.startswith("420 of 1,000 images (42 %)")
    assert last.fields["failures"] == {"read: TimeoutError": 20}
    assert (last.fields["done"], last.fields["total"], last.fields["failed"]) == (420, 1000, 20)


def test_a_total_that_is_still_being_listed_is_a_lower_bound_without_share_and_time_left() -> None:
    progress = ProgressReport(0, final=False)
    progress.expect(2048, final=False)
    progress.reach(100)
    assert progress.line().startswith("100 of at least 2,048 images, ")
    assert "time left unknown" in progress.line()
    progress.expect(4096, final=True)
    assert progress.line().startswith("100 of 4,096 images (2 %)")
    assert "unknown" not in progress.line()


def test_a_step_is_said_at_once_and_again_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.run.progress._TICK_S", 0.01)
    kept = Kept()
    with shown_by(kept), announced("listing photos") as tell:
        tell("1,200 images so far")
        deadline = time.monotonic() + 100
        while len(kept.events) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [kept.events[0].text, kept.events[0].phase] == ["listing photos ...", "begin"]
    assert [event.phase for event in kept.events[1:-1]] == ["still"] * (len(kept.events) - 2)
    assert [kept.events[-1].text, kept.events[-1].phase] == [
        "listing photos: 1,200 images so far (0 s)",
        "end",
    ]
    assert kept.events[-1].fields["detail"] == "1,200 images so far"


def test_a_terminal_that_is_gone_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.run.progress._TICK_S", 0.01)
    gone = Lines(lambda line: print(line, file=ClosedTerminal()), text_line, 0.01)
    with shown_by(gone), announced("listing"), ProgressReport(1) as progress:
        progress.advance(1, 0)
        time.sleep(0.05)
    assert progress.done == 1
