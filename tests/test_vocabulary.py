from pathlib import Path

import numpy as np
import pytest

from ovss_core.errors import ConfigError, VocabularyError
from ovss_core.vocabulary import Vocabulary


def test_a_line_is_a_class_and_commas_separate_its_synonyms() -> None:
    vocabulary = Vocabulary.from_names(["cat", "dog, puppy , hound", "road: asphalt, street"])
    assert vocabulary.names == ["cat", "dog", "road"]
    assert vocabulary.phrases == ["cat", "dog", "puppy", "hound", "asphalt", "street"]
    assert vocabulary.phrase_class.tolist() == [0, 1, 1, 1, 2, 2]
    assert vocabulary.phrase_class.dtype == np.int64
    assert len(vocabulary) == 3


def test_the_class_named_background_is_the_background_wherever_it_stands() -> None:
    assert Vocabulary.from_names(["cat", "background: sky, wall"]).background_index == 1
    assert Vocabulary.from_names(["background", "cat"]).phrases == ["background", "cat"]
    assert Vocabulary.from_names(["background:", "cat"]).phrases == ["cat"]
    assert Vocabulary.from_names(["cat", "background noise"]).background_index is None


def test_files_skip_comments_empty_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# mine\r\n\r\n  Kätzchen, ネコ \r\n#dog\r\ngrass\r\n".encode())
    vocabulary = Vocabulary.from_file(path)
    assert vocabulary.names == ["Kätzchen", "grass"]
    assert vocabulary.phrases == ["Kätzchen", "ネコ", "grass"]
    assert vocabulary.name == str(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "needs 1 to 65535 classes, got 0; give one class a line"),
        (["cat", "dog", "cat: kitten"], r"class 'cat' appears twice \(classes 1 and 3.*commas"),
        (["cat", ","], "class 2 has an empty name or phrase"),
        (["cat", ": dog"], "class 2 has an empty name or phrase"),
        (["cat", "dog:"], "class 'dog' has no phrase; give it at least one"),
        (["background:"], "no phrase to look for; add a class"),
        ([f"class {i}" for i in range(65_536)], "got 65536"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_says_why(lines: list[str], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.from_names(lines)


def test_a_repeated_class_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "twice.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(VocabularyError, match=r"of .*twice\.txt"):
        Vocabulary.load(tmp_path / "twice.txt")


def test_unreadable_files_and_unknown_names_list_what_is_shipped(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(VocabularyError, match=r"cannot read the vocabulary .*latin\.txt.*UTF-8.*ade20k"):
        Vocabulary.load(tmp_path / "latin.txt")
    with pytest.raises(VocabularyError, match=r"unknown vocabulary 'voc22'.*voc21, voc21\.freecp"):
        Vocabulary.load("voc22")
    assert issubclass(VocabularyError, ConfigError)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("voc21", 21),
        ("voc20", 20),
        ("context59", 59),
        ("context60", 60),
        ("coco_object", 81),
        ("coco_stuff164k", 171),
        ("ade20k", 150),
        ("cityscapes", 19),
        ("voc21.freecp", 21),
        ("voc20.freecp", 20),
        ("coco_object.freecp", 81),
        ("cityscapes.freecp", 19),
    ],
)
def test_the_shipped_vocabularies_have_their_benchmarks_classes(name: str, classes: int) -> None:
    vocabulary = Vocabulary.load(name)
    assert len(vocabulary) == classes
    has_background = classes in (21, 60, 81)
    assert vocabulary.background_index == (0 if has_background else None)


def test_every_shipped_vocabulary_loads() -> None:
    names = Vocabulary.shipped_names()
    assert len(names) >= 12
    for name in names:
        assert Vocabulary.load(name).name == name


def test_masks_are_bytes_up_to_255_classes() -> None:
    assert Vocabulary.from_names(map(str, range(255))).mask_dtype is np.uint8
    assert Vocabulary.from_names(map(str, range(256))).mask_dtype is np.uint16


def test_the_content_hash_follows_names_phrases_and_order_but_not_the_title() -> None:
    lines = ["cat", "dog, puppy"]
    reference = Vocabulary.from_names(lines, "a").content_hash
    assert Vocabulary.from_names(lines, "b").content_hash == reference
    for other in (["dog, puppy", "cat"], ["cat", "dog"], ["cat", "hound: dog, puppy"], ["cat, dog, puppy"]):
        assert Vocabulary.from_names(other).content_hash != reference


def test_a_vocabulary_survives_the_trip_through_plain_values() -> None:
    for name in (None, "mine"):
        vocabulary = Vocabulary.from_names(["background:", "größe: grand, café", "cat"], name)
        assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


def test_a_file_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("voc21").write_text("unicorn\n")
    assert Vocabulary.load("voc21").names == ["unicorn"]
