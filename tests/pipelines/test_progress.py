"""What the terminal says while a run goes on."""

import io
import time

import pytest

from pipelines.run.progress import ProgressReport, announced


class ClosedTerminal(io.StringIO):
    """A terminal whose window was closed: whatever is written fails."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_progress_moves_by_image_and_never_shows_more_than_there_are() -> None:
    progress = ProgressReport(10, stream=io.StringIO())
    progress.resume(4, 1)
    assert progress.line().startswith("4 of 10 images (40 %), waiting for the first ones (0 s), 1 failed")
    progress.reach(3)
    assert progress.line().startswith("7 of 10 images (70 %)")
    progress.reach(2)
    assert progress.shown == 7
    progress.advance(1, 0)
    assert (progress.shown, progress.done, progress.fresh) == (7, 5, 1)
    progress.reach(60)
    assert progress.line().startswith("10 of 10 images (100 %)")


def test_the_last_line_says_what_is_stored() -> None:
    stream = io.StringIO()
    with ProgressReport(1000, stream=stream) as progress:
        progress.reach(999)
        assert progress.line().startswith("999 of 1,000 images (99 %)")
        progress.advance(400, 20)
    assert stream.getvalue().splitlines()[-1].startswith("420 of 1,000 images (42 %)")


def test_a_total_that_is_still_being_listed_is_a_lower_bound_without_share_and_time_left() -> None:
    progress = ProgressReport(0, stream=io.StringIO(), final=False)
    progress.expect(2048, final=False)
    progress.reach(100)
    assert progress.line().startswith("100 of at least 2,048 images, ")
    assert "time left unknown" in progress.line()
    progress.expect(4096, final=True)
    assert progress.line().startswith("100 of 4,096 images (2 %)")
    assert "unknown" not in progress.line()


def test_a_step_that_lasts_is_said_and_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("pipelines.run.progress._QUICK_S", 0.01)
    with announced("listing photos", 0.01, stream) as tell:
        tell("1,200 images so far")
        deadline = time.monotonic() + 10
        while "so far" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert stream.getvalue().startswith("listing photos ...\nlisting photos: 1,200 images so far (0 s)\n")


def test_a_step_that_takes_no_time_says_nothing() -> None:
    stream = io.StringIO()
    with announced("listing photos", 0.01, stream):
        pass
    assert stream.getvalue() == ""


def test_a_terminal_that_is_gone_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.run.progress._QUICK_S", 0.01)
    with announced("listing", 0.01, ClosedTerminal()), ProgressReport(1, stream=ClosedTerminal()) as progress:
        progress.advance(1, 0)
        time.sleep(0.05)
    assert progress.done == 1
