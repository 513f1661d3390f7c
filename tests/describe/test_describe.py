"""`ovss describe` against a service of the protocol: broken answers, 429, kills, resuming, and keys that stay secret."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import cli
from ovss_core.vocabulary import Vocabulary, require_descriptions
from pipelines.preflight import read_descriptions
from tests.describe.service import Reply, serving

pytest.importorskip("openai")
WORDS = "cat,dog,traffic cone"
KEY = "sk-secret-of-the-test"
GOOD = {
    "cat": ["A cat has long whiskers and pointed ears.", "The fur of a cat is soft and often striped."],
    "dog": ["A dog wags its tail beside the owner.", "From the mouth of a dog hangs a wet tongue."],
    "traffic cone": [
        "A traffic cone is bright and pointed.",
        "White bands circle the traffic cone on the street.",
    ],
}


def good(name: str, _: int = 1) -> str:
    return json.dumps({"sentences": GOOD[name]})


def command(url: str, output: Path, *more: str) -> list[str]:
    flags = ["--vocabulary", WORDS, "--endpoint", url, "--model", "m", "--output", str(output)]
    return ["describe", *flags, "--sentences", "2", "--retries", "3", *more]


def journal(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(f"{output}.answers.jsonl").read_text().splitlines()]


def test_every_class_is_described_and_the_file_is_what_label_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    output = tmp_path / "words.json"
    with serving(good) as service:
        assert cli.main(command(service.url, output)) == 0
    printed = capsys.readouterr()
    assert "3 classes described" in printed.out
    assert "300 prompt and 30 completion tokens" in printed.out
    assert service.asked == list(GOOD)
    assert service.keys == [f"Bearer {KEY}"] * 3
    sentences = read_descriptions(str(output))
    assert sentences == GOOD
    require_descriptions(Vocabulary.load(WORDS), GOOD)

    head, *entries = journal(output)
    assert "asked" in head
    assert [entry["class"] for entry in entries] == list(GOOD)
    assert entries[0]["messages"] == service.bodies[0]["messages"]
    assert "Other classes: dog, traffic cone" in service.bodies[0]["messages"][1]["content"]
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in everything
    assert KEY not in printed.out + printed.err


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("Sure! A cat has whiskers.", "the answer is no JSON"),
        ("", "the answer is no JSON"),
        ("[" * 100_000, "the answer is no JSON"),
        ('["A cat."]', "the JSON is no object"),
        ('{"sentences": "A cat has whiskers."}', "with a list of texts"),
        ('{"sentences": [1, 2]}', "with a list of texts"),
        (r'{"sentences": ["A cat has \ud83d eyes.", "A cat is small and soft."]}', "halves of characters"),
        ('{"sentences": ["A cat has whiskers and ears."]}', "has 1 sentences, and not 2 to 4"),
        ('{"sentences": ["A cat chases a dog.", "The fur of a cat is soft."]}', "names a rival (dog)"),
        (
            '{"sentences": ["It has pointed ears up high.", "The fur of a cat is soft."]}',
            "does not say which",
        ),
        (
            '{"sentences": ["A cat has soft fur.", "A cat has soft fur."]}',
            "says what a sentence of 'cat' says",
        ),
    ],
)
def test_a_broken_answer_is_asked_for_again_with_its_fault(tmp_path: Path, answer: str, fault: str) -> None:
    output = tmp_path / "words.json"
    with serving(
        lambda name, count: answer if (name, count) == ("cat", 1) else f"```json\n{good(name)}\n```"
    ) as service:
        assert cli.main(command(service.url, output)) == 0
    assert service.asked == ["cat", "cat", "dog", "traffic cone"]
    told = service.bodies[1]["messages"]
    assert told[2] == {"role": "assistant", "content": answer}
    assert fault in told[3]["content"]
    assert json.loads(output.read_text()) == GOOD
    assert fault in str(journal(output)[1]["faults"])


def test_sentences_of_another_class_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "words.json"
    echo = json.dumps({"sentences": [one.replace("cat", "dog") for one in GOOD["cat"]]})
    with serving(lambda name, count: echo if (name, count) == ("dog", 1) else good(name)) as service:
        assert cli.main(command(service.url, output)) == 0
    assert "says what a sentence of 'cat' says" in service.bodies[2]["messages"][3]["content"]


def test_a_class_whose_answers_are_all_refused_is_named_and_the_rest_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "words.json"
    with serving(lambda name, _: "no" if name == "dog" else good(name)) as service:
        assert cli.main(command(service.url, output, "--attempts", "2")) == 1
        assert service.asked == ["cat", "dog", "dog", "traffic cone"]
    assert "no sentences for 'dog': the last answer the answer is no JSON" in capsys.readouterr().out
    assert list(json.loads(output.read_text())) == ["cat", "traffic cone"]
    with serving(good) as service:
        assert cli.main(command(service.url, output, "--attempts", "2")) == 0
    assert service.asked == ["dog"]
    assert json.loads(output.read_text()) == GOOD
    assert "500 prompt and 50 completion tokens" in capsys.readouterr().out


@pytest.mark.parametrize("fault", [429, 500, 503, 0.0])
def test_errors_that_may_pass_are_tried_again(tmp_path: Path, fault: Reply) -> None:
    output = tmp_path / "words.json"
    with serving(lambda name, count: fault if (name, count) == ("dog", 1) else good(name)) as service:
        assert cli.main(command(service.url, output)) == 0
    assert service.asked == ["cat", "dog", "dog", "traffic cone"]
    assert json.loads(output.read_text()) == GOOD


@pytest.mark.parametrize(
    "fault", [401, 429, b"<html>", b'{"choices": []}', b'{"choices": [{}]}', b"[]", b'"x"']
)
def test_a_service_that_does_not_answer_ends_the_command_in_one_line_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: Reply
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    output = tmp_path / "words.json"
    with serving(lambda name, _: fault if name == "dog" else good(name)) as service:
        status = cli.main(command(service.url, output, "--retries", "1", "--attempts", "1"))
    printed = capsys.readouterr()
    assert status == 1
    assert KEY not in printed.out + printed.err
    if not printed.out:
        assert [line for line in printed.err.splitlines() if "error" in line] == [
            printed.err.splitlines()[-1]
        ]
        assert "the same command goes on" in printed.err
    with serving(good) as service:
        assert cli.main(command(service.url, output)) == 0
    assert "cat" not in service.asked
    assert json.loads(output.read_text()) == GOOD
    assert KEY not in Path(f"{output}.answers.jsonl").read_text()


def test_a_killed_command_asks_no_class_twice(tmp_path: Path) -> None:
    output = tmp_path / "words.json"
    stored = Path(f"{output}.answers.jsonl")
    with serving(lambda name, _: 60.0 if name == "traffic cone" else good(name)) as service:
        child = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *command(service.url, output)], env=os.environ
        )
        try:
            end = time.monotonic() + 120
            while "traffic cone" not in service.asked and time.monotonic() < end:
                time.sleep(0.05)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    assert service.asked == list(GOOD)
    assert not output.exists()
    with stored.open("ab") as file:
        file.write(b'{"class": "traffic co')  # a line that was cut short
    with serving(good) as service:
        assert cli.main(command(service.url, output)) == 0
    assert service.asked == ["traffic cone"]
    assert json.loads(output.read_text()) == GOOD
    assert len(journal(output)) == 4


def test_answers_to_another_question_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "words.json"
    with serving(good) as service:
        assert cli.main(command(service.url, output)) == 0
        assert cli.main(command(service.url, output, "--model", "other")) == 2
        assert (
            "was written with another model; give another --output, or --overwrite" in capsys.readouterr().err
        )
        assert len(service.asked) == 3
        assert cli.main(command(service.url, output, "--model", "other", "--overwrite")) == 0
    assert len(service.asked) == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--endpoint", "localhost"], "is no address"),
        (["--endpoint", "http://me:pw@host/v1"], "holds a name or password"),
        (["--sentences", "0"], "--sentences is 0"),
        (["--attempts", "0"], "--attempts is 0"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with serving(good) as service:
        assert cli.main(command(service.url, tmp_path / "words.json", *flags)) == 2
    assert message in capsys.readouterr().err
    assert service.asked == []
    assert list(tmp_path.iterdir()) == []


def test_without_the_client_one_line_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert cli.main(command("http://127.0.0.1:1/v1", tmp_path / "words.json")) == 2
    assert "pip install 'ovss[describe]'" in capsys.readouterr().err
