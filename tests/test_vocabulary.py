import json
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    "name", ["Background", "BACKGROUND", "_background_", "__background__", "bg", "BG", "_bg_"]
)
def test_the_usual_spellings_of_the_background_are_taken_as_it(name: str) -> None:
    vocabulary = Vocabulary.from_names(["cat", name])
    assert vocabulary.background_index == 1
    assert vocabulary.names == ["cat", name]
    assert vocabulary.phrases == ["cat", "background"]
    described = Vocabulary.from_names([f"{name}: sky, {name}", "cat"])
    assert described.phrases == ["sky", "background", "cat"]
    assert Vocabulary.from_names([f"{name}:", "cat"]).phrases == ["cat"]


def test_two_spellings_of_the_background_in_one_vocabulary_are_refused() -> None:
    with pytest.raises(
        VocabularyError, match="'background' and '_background_' both name the background; keep one"
    ):
        Vocabulary.from_names(["background", "cat", "_background_"])


def test_other_names_are_no_background() -> None:
    for name in ("backgrounds", "background noise", "foreground", "bgr", "void"):
        assert Vocabulary.from_names([name, "cat"]).background_index is None


CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog::tail,nose:sit\n"
COCO = {
    "info": {},
    "categories": [{"id": 1, "name": "dog"}, {"id": 0, "name": "cat", "supercategory": "animal"}],
}


@pytest.mark.parametrize(
    ("file", "content", "names"),
    [
        ("labelmap.txt", CVAT, ["background", "cat", "dog"]),
        ("ids.txt", "0,cat\n1,dog\n", ["cat", "dog"]),
        ("ids.csv", "id,name\r\n0,cat\r\n1,dog\r\n", ["cat", "dog"]),
        ("ids.tsv", "class_id\tclass_name\n0\tcat\n1\tdog\n", ["cat", "dog"]),
        ("ids.txt", "0: cat\n1: dog, puppy\n", ["cat", "dog"]),
        ("ids.txt", "0 cat\n1 dog\n", ["cat", "dog"]),
        ("last.txt", "cat 0,0\ndog,1\n", ["cat 0", "dog"]),
        ("numbers.txt", "7 seas\n2 cats\n", ["7 seas", "2 cats"]),
        ("digits.txt", "0\n1\n2\n", ["0", "1", "2"]),
        ("plane.txt", "airplane, 747\ncat\n", ["airplane", "cat"]),
        ("list.txt", "- cat\n- 'dog'\n", ["cat", "dog"]),
        ("list.yaml", "- cat\n- dog, puppy\n", ["cat", "dog"]),
        ("data.yaml", "path: x\nnc: 2\nnames:\n  0: cat\n  1: dog\n", ["cat", "dog"]),
        ("data.yml", "names: [cat, dog]\n", ["cat", "dog"]),
        ("list.json", '["cat", "dog, puppy"]', ["cat", "dog"]),
        ("list.txt", '["cat", "dog"]', ["cat", "dog"]),
        ("lists.json", '[["cat"], ["dog", "puppy"]]', ["cat", "dog"]),
        ("phrases.json", '{"cat": ["cat", "kitten"], "dog": "hound"}', ["cat", "dog"]),
        ("ids.json", '{"1": "dog", "0": "cat"}', ["cat", "dog"]),
        ("ids.json", '{"dog": 1, "cat": 0}', ["cat", "dog"]),
        ("config.json", '{"id2label": {"0": "cat", "1": "dog"}, "hidden_size": 8}', ["cat", "dog"]),
        ("coco.json", json.dumps(COCO), ["cat", "dog"]),
        ("cvat.json", '[{"name": "cat", "color": "#fff"}, {"name": "dog"}]', ["cat", "dog"]),
    ],
)
def test_files_that_say_the_same_in_another_form_are_read(
    file: str, content: str, names: list[str], tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(content.encode())
    assert Vocabulary.load(tmp_path / file).names == names


def test_phrases_come_along_from_every_form(tmp_path: Path) -> None:
    expected = ["cat", "dog", "puppy"]
    for file, content in (
        ("a.json", '[["cat"], ["dog", "puppy"]]'),
        ("b.json", '{"cat": "cat", "dog": ["dog", "puppy"]}'),
        ("c.yaml", "- cat\n- dog, puppy\n"),
        ("d.txt", "0: cat\n1: dog, puppy\n"),
    ):
        (tmp_path / file).write_text(content)
        assert Vocabulary.load(tmp_path / file).phrases == expected
    (tmp_path / "e.txt").write_bytes("cat\ndog, puppy\n".encode("utf-16"))
    assert Vocabulary.load(tmp_path / "e.txt").phrases == expected


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "ids.csv",
            "1,cat\n2,dog\n",
            r"class 0 has 1 \(line 1: '1,cat'\); in ovss a class's value is its position",
        ),
        ("ids.csv", "id,name\n0,cat\n2,dog\n", r"class 1 has 2 \(line 3: '2,dog'\)"),
        ("ids.txt", "1: cat\n2: dog\n", "are not 0, 1, 2"),
        ("last.csv", "cat,7\ndog,8\n", r"class 0 has 7 \(line 1: 'cat,7'\)"),
        (
            "colors.csv",
            "cat,255,0,0\ndog,0,255,0\n",
            r"line 1 of .* has numbers beside a name \('cat,255,0,0'\)",
        ),
        ("mixed.txt", "cat\n# x\ndog:128,0,0::\n", r"line 3 of .* has numbers beside a name"),
        ("ade.csv", "Idx,Ratio,Name\n1,0.15,wall\n", r"line 2 of .* has numbers beside a name"),
        ("ade.csv", "Idx;Name\n1;wall;x\n3;a\n", r"class 0 has 1"),
        ("semicolons.csv", "cat;kitten\n", r"line 1 of .* has a ';' in it"),
        ("tabs.tsv", "cat\tkitten\n", r"line 1 of .* has a tab in it"),
        ("map.pbtxt", "item {\n  id: 1\n}\n", r"line 1 of .* has a '\{' in it"),
        ("labels.xml", "<labels>\n<a/></labels>\n", r"line 1 of .* has a '<' in it"),
        ("broken.json", '["cat",\n "dog",\n', r"looks like JSON, but line 3 is none"),
        ("broken.yaml", "names: [cat, dog\nx: 1\n", r"line 2 of .*broken\.yaml is no YAML"),
        ("text.json", '"cat"', "holds text; give a list of names"),
        ("numbers.json", "[1, 2]", "entry 1 of .* is a number, no class"),
        ("nested.json", '{"cat": {"color": "red"}}', "'cat' of .* has an object for phrases"),
        ("coco.json", '{"categories": [{"id": 1, "name": "cat"}]}', "the ids of .* are not 0, 1, 2"),
        ("coco.json", '[{"id": 0, "supercategory": "cat"}]', "entry 1 of .* has no name"),
        ("empty.json", "[]", "got 0; give one class a line"),
    ],
)
def test_files_that_say_something_else_are_refused_with_their_line(
    file: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(VocabularyError, match=message) as raised:
        Vocabulary.load(str(tmp_path / file))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("cat,dog", ["cat", "dog"]),
        ("cat, traffic light ,dog", ["cat", "traffic light", "dog"]),
        ("cat,", ["cat"]),
        ("cat\ndog, puppy", ["cat", "dog"]),
        (["cat", "dog, puppy"], ["cat", "dog"]),
        (",".join(f"class {index}" for index in range(200)), [f"class {index}" for index in range(200)]),
    ],
)
def test_words_may_stand_in_place_of_a_file(spec: Any, names: list[str]) -> None:
    assert Vocabulary.load(spec).names == names


def test_a_mistyped_name_or_path_is_not_taken_for_a_word(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"unknown vocabulary 'voc12' \(did you mean 'voc21'\?\)"):
        Vocabulary.load("voc12")
    with pytest.raises(VocabularyError, match="words of your own go here too, separated by commas"):
        Vocabulary.load("cat")
    with pytest.raises(VocabularyError, match="no such file"):
        Vocabulary.load("a,b/words.txt")
    with pytest.raises(VocabularyError, match="is a folder; give a file"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("deep.txt", "[" * 100_000, "deep.txt holds something else than a vocabulary"),
        ("deep.json", '{"names":' * 100_000, "deep.json holds something else than a vocabulary"),
        ("deep.yaml", "- " * 5000, "deep.yaml holds something else than a vocabulary"),
        ("itself.yaml", "names: &n\n  names: *n\n", "itself.yaml holds something else than a vocabulary"),
        ("date.yaml", "cat: 2001-99-99\n", "date.yaml holds something else than a vocabulary"),
        ("huge.yaml", f"? 0x{'f' * 9000}\n: cat\n", "huge.yaml holds something else than a vocabulary"),
        ("huge.csv", f"{'9' * 5000},cat\n", "line 1 of .*huge.csv has numbers beside a name"),
        ("long.json", json.dumps({"c" * 9000: {}}), r"'c{57}\.\.\.' of .*long.json has an object"),
        ("long.txt", f"{'c' * 9000}\n" * 2, r"class 'c{57}\.\.\.' appears twice"),
        ("powers.json", '{"²": "cat"}', None),
        ("half.json", r'["cat", "\ud83d"]', r"class 2 has a sign in it that is no text: '\\ud83d: \\ud83d'"),
    ],
)
def test_values_that_no_parser_or_number_holds_are_refused_in_one_line(
    tmp_path: Path, name: str, content: str, message: str | None
) -> None:
    (tmp_path / name).write_text(content)
    if message is None:
        assert Vocabulary.from_file(tmp_path / name).names == ["²"]
        return
    with pytest.raises(VocabularyError, match=message) as caught:
        Vocabulary.from_file(tmp_path / name)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_words_that_are_no_text_are_refused() -> None:
    with pytest.raises(VocabularyError, match="class 1 has a sign in it that is no text"):
        Vocabulary.load("caf\udce9,tea")  # as Python hands on what a terminal sends in another encoding
