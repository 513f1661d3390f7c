"""What becomes of events: lines, JSON, a live picture, a log. Their times are made up; nothing waits."""

import io
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.run.displays import (
    Lines,
    Live,
    RunLog,
    _dated_lines,
    displays_of,
    json_line,
    text_line,
)
from pipelines.run.events import Display, Event, EventHandler, Phase, say, shown_by
from pipelines.run.options import RunOptions
from pipelines.storage import Folder
from tests.pipelines.kept_events import Kept


def step(text: str, phase: Phase, at: float, key: str = "step 1") -> Event:
    fields = {"step": "listing photos", "detail": "", "seconds": at}
    return Event("step", text, fields, phase, key, at)


def images(
    done: int, phase: Phase, at: float, failures: dict[str, int] | None = None, final: bool = True
) -> Event:
    failed = sum((failures or {}).values())
    fields = {"done": done, "total": 100, "final": final, "failed": failed, "failures": failures or {}}
    fields |= {"images_per_second": 2.0, "seconds_left": 50.0}
    return Event("images", f"{done} of 100 images", fields, phase, "images 2", at)


def lasting(interval_at: list[float]) -> list[Event]:
    """A step that lasts from the first to the last of these times."""
    first, *between, last = interval_at
    middle = [step(f"listing photos ({at:.0f} s)", "still", at) for at in between]
    return [step("listing photos ...", "begin", first), *middle, step("listing photos (done)", "end", last)]


def lines_of(
    events: list[Event], form: Callable[[Event], str] = text_line, interval_s: float = 10.0
) -> list[str]:
    written: list[str] = []
    display = Lines(written.append, form, interval_s)
    for event in events:
        display.show(event)
    return written


def test_a_step_that_lasts_is_said_soon_then_every_interval_and_when_it_ends() -> None:
    said = lines_of(lasting([0.0, 0.5, 1.0, 5.0, 10.4, 10.6, 11.0, 20.7, 21.0]))
    assert said == [
        "ovss: listing photos ...",
        "ovss: listing photos (11 s)",
        "ovss: listing photos (21 s)",
        "ovss: listing photos (done)",
    ]


def test_a_step_that_takes_no_time_is_passed_over_by_people_and_told_to_programs() -> None:
    assert lines_of(lasting([0.0, 0.1])) == []
    assert [json.loads(line)["phase"] for line in lines_of(lasting([0.0, 0.1]), json_line)] == [
        "begin",
        "end",
    ]


def test_images_are_said_at_once_and_steps_beside_them_have_intervals_of_their_own() -> None:
    said = lines_of(
        [
            images(0, "begin", 0.0),
            *lasting([0.1, 0.7, 5.0]),
            images(9, "still", 5.0),
            images(20, "still", 10.0),
            images(100, "end", 12.0),
        ]
    )
    assert said == [
        "ovss: 0 of 100 images",
        "ovss: listing photos ...",
        "ovss: listing photos (done)",
        "ovss: 20 of 100 images",
        "ovss: 100 of 100 images",
    ]


def test_json_is_an_object_a_line_with_time_kind_and_all_that_is_known() -> None:
    [line] = lines_of([images(7, "end", 1.5e9, {"read: HTTP 404": 2})], json_line)
    assert json.loads(line) == {
        "ts": "2017-07-14T02:40:00.000Z",
        "event": "images",
        "phase": "end",
        "text": "7 of 100 images",
        "done": 7,
        "total": 100,
        "final": True,
        "failed": 2,
        "failures": {"read: HTTP 404": 2},
        "images_per_second": 2.0,
        "seconds_left": 50.0,
    }
    assert "\n" not in json_line(Event("note", "two\nlines"))


def terminal(width: int = 100) -> tuple[Live, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    return Live(console, refreshed=False), stream


def picture(display: Live, width: int = 100) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(display.picture())
    return capture.get()


def test_the_live_picture_has_the_step_the_bar_and_why_images_failed() -> None:
    display, stream = terminal()
    display.show(step("loading the model ...", "begin", 0.0))
    assert "loading the model ..." in picture(display)
    display.show(step("loading the model (3 s)", "end", 3.0))
    display.show(images(40, "still", 4.0, {"read: HTTP 404": 2, "decode: ImageError": 1}))
    shown = picture(display)
    assert "loading the model" not in shown
    assert "40 of 100 images" in shown
    assert shown.index("2 x read: HTTP 404") < shown.index("1 x decode: ImageError")
    bar = shown.splitlines()[0].partition("40 of")[0]
    assert bar.count("━") == 12  # of 30 cells
    display.show(images(100, "end", 9.0, {"read: HTTP 404": 2}))
    assert picture(display) == ""
    display.close()
    left = stream.getvalue()
    assert "✓ loading the model (3 s)\n" in left
    assert "✓ 100 of 100 images\n    2 x read: HTTP 404\n" in left
    assert left.count("\x1b[?25l") == left.count("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_narrow_terminal_keeps_the_count_of_failures(width: int) -> None:
    text = "16 of 24 images (66 %), 1.10 images/s, time left 0:00:07, 2 failed"
    fields = {"done": 16, "total": 24, "final": True, "failures": {}}
    display, _ = terminal(width)
    display.show(Event("images", text, fields, "begin", "images"))
    shown = " ".join(picture(display, width).replace("━", "").replace("╺", "").replace("╸", "").split())
    assert shown == text
    display.close()


def test_a_quick_step_leaves_no_line_on_a_terminal_and_markup_is_text() -> None:
    display, stream = terminal()
    display.show(step("looking ...", "begin", 0.0))
    display.show(step("looking (0 s)", "end", 0.1))
    display.show(Event("error", "error: no folder [red]x[/red]"))
    display.close()
    assert "looking (0 s)" not in stream.getvalue()
    assert "✗ error: no folder [red]x[/red]\n" in stream.getvalue()


def test_a_closing_gives_the_cursor_back_in_the_middle_of_a_step() -> None:
    display, stream = terminal()
    display.show(step("loading the model ...", "begin", 0.0))
    display.close()
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("plain", "log_format", "term", "is_terminal", "kind"),
    [
        (False, "text", "xterm", True, Live),
        (True, "text", "xterm", True, Lines),
        (False, "json", "xterm", True, Lines),
        (False, "text", "dumb", True, Lines),
        (False, "text", "xterm", False, Lines),
    ],
)
def test_a_live_display_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, plain: bool, log_format: str, term: str, is_terminal: bool, kind: type
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", Terminal() if is_terminal else io.StringIO())
    display, log = displays_of(RunOptions("out", plain=plain, log_format=log_format))  # type: ignore[arg-type]
    assert type(display) is kind
    assert isinstance(log, RunLog)
    display.close()


def test_a_log_holds_what_was_said_before_its_place_was_known_and_a_line_is_there_at_once(
    tmp_path: Path,
) -> None:
    log = RunLog(_dated_lines, 60.0)
    log.show(Event("note", "starting workers", time=0.0))
    log.log_into(Folder(str(tmp_path)))
    [file] = (tmp_path / "_log").iterdir()
    assert file.suffix == ".log"
    assert file.read_text() == "1970-01-01T00:00:00.000Z ovss: starting workers\n"
    for at in (1.0, 30.0, 62.0):
        log.show(images(int(at), "begin" if at == 1.0 else "still", at))
    assert [line.partition("ovss: ")[2] for line in file.read_text().splitlines()[1:]] == [
        "1 of 100 images",
        "62 of 100 images",
    ]
    log.close()


def test_a_log_on_a_store_is_written_as_a_whole_now_and_then_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "is_local", property(lambda folder: False))  # stores cannot be appended to
    place, log = Folder(str(tmp_path)), RunLog(json_line)
    log.log_into(place)
    for at in (40.0, 41.0, 42.0):
        log.show(Event("note", f"at {at:.0f}", time=at))
    log.show(Event("note", "last", time=43.0))
    log.close()
    [name] = place.names("_log")
    said = [json.loads(line)["text"] for line in place.read(f"_log/{name}").decode().splitlines()]
    assert (name.endswith(".jsonl"), said) == (True, ["at 40", "at 41", "at 42", "last"])


def test_a_log_without_an_output_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = RunLog(_dated_lines)
    log.show(Event("note", "refused"))
    log.close()
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_warnings_become_events_and_secrets_of_addresses_do_not() -> None:
    kept: Display = Kept()
    logger = logging.getLogger("test.displays")
    logger.propagate = False
    logger.addHandler(handler := EventHandler())
    with shown_by(kept):
        logger.warning("cannot reach %s", "s3://key:secret@bucket/x")
        say("fetching s3://key:secret@bucket/x")
    logger.removeHandler(handler)
    assert isinstance(kept, Kept)
    assert [event.name for event in kept.events] == ["log", "note"]
    assert text_line(kept.events[0]).startswith("WARNING test.displays: cannot reach ")
    assert not any("secret" in event.text for event in kept.events)
