"""The sentences that ship: reviewed as `python -m tests.review_descriptions` does, and found for the right vocabularies."""

import json
from pathlib import Path

import pytest

from ovss_core.config import PurificationConfig, SegmenterConfig
from ovss_core.description_review import ReviewRules, count_clip_tokens, review
from ovss_core.shipped_descriptions import (
    SHARED,
    choose_descriptions,
    family_of,
    shipped_descriptions,
)
from ovss_core.vocabulary import Vocabulary
from tests.review_descriptions import findings_of, main

FOLDER = Path(__file__).parent.parent / "ovss_core" / "vocabularies" / "descriptions"
NAMES = Vocabulary.shipped_names()


@pytest.mark.parametrize("name", NAMES)
def test_every_class_of_a_shipped_vocabulary_has_sentences_that_pass_the_review(name: str) -> None:
    classes, sentences, findings = findings_of(name)
    assert not findings, "\n".join(map(str, findings))
    vocabulary = Vocabulary.load(name)
    assert classes == len(vocabulary) - (vocabulary.background_index is not None)
    assert 5 * classes <= sentences <= 8 * classes


def test_the_families_hold_more_than_five_hundred_classes() -> None:
    largest = {family_of(name): Vocabulary.load(name) for name in NAMES}
    assert sorted(largest) == ["ade20k", "cityscapes", "coco_object", "coco_stuff", "context", "demo", "voc"]
    found = [shipped_descriptions(vocabulary) for vocabulary in largest.values()]
    assert sum(len(entry.sentences) for entry in found if entry) > 500


def test_the_demo_models_text_tower_reads_its_sentences_whole() -> None:
    vocabulary = Vocabulary.load("demo")
    shipped = shipped_descriptions(vocabulary)
    assert shipped is not None
    assert not review(vocabulary, shipped.sentences, count_clip_tokens, rules=ReviewRules(max_tokens=32))


def test_no_file_holds_an_entry_that_nothing_takes() -> None:
    files = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    shared = files.pop(SHARED)
    families = {family_of(name) for name in NAMES}
    assert set(files) <= families
    taken = set()
    for family in families:
        names = {word for name in NAMES if family_of(name) == family for word in Vocabulary.load(name).names}
        own = files.get(family, {})
        assert set(own) <= names
        taken |= {entry for entry in own.values() if isinstance(entry, str)} | (names - set(own))
    assert set(shared) <= taken


def test_spellings_of_one_data_set_share_their_sentences() -> None:
    found = [
        shipped_descriptions(Vocabulary.load(name)) for name in ("voc20.sfp", "voc21.freecp", "voc21.sfp")
    ]
    assert all(entry is not None and entry == found[0] for entry in found)


def test_a_file_that_is_called_like_a_shipped_vocabulary_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("cat\ndog\n")
    assert Vocabulary.load("demo").name == "demo"
    assert shipped_descriptions(Vocabulary.load("demo")) is None
    assert shipped_descriptions(Vocabulary.from_names(["cat", "dog"])) is None
    assert shipped_descriptions(Vocabulary.shipped("demo")) is not None


def test_only_a_run_that_reads_sentences_takes_the_shipped_ones() -> None:
    vocabulary, config = Vocabulary.load("voc21"), SegmenterConfig()
    taken = choose_descriptions("shipped", vocabulary, config)
    assert taken is not None
    assert set(taken) == set(vocabulary.names) - {"background"}
    own = {"cat": ["A cat."]}
    assert choose_descriptions(own, vocabulary, config) is own
    assert choose_descriptions(None, vocabulary, config) is None
    for idle in (PurificationConfig(method="none"), PurificationConfig(ambiguity=False)):
        assert choose_descriptions("shipped", vocabulary, SegmenterConfig(purification=idle)) is None


def test_the_script_prints_a_line_a_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["voc21.sfp", "demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["voc21.sfp: 20 classes", "demo: 44 classes"]
    assert all(line.endswith(" 0 faults") for line in lines)
