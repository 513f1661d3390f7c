from pathlib import Path

import pytest
import yaml

from jobs import label, train_demo
from jobs.arguments import load_vocabulary, parse_with_protocol, take_fields, take_segmenter
from ovss_core.config import SegmenterConfig
from ovss_core.errors import ConfigError, VocabularyError
from ovss_core.evaluation.benchmarks.protocols import protocol_config
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions

FLAGS = {
    "--images": "photos",
    "--output": "out",
    "--vocabulary": "voc21",
    "--num-gpus": "0.5",
    "--host": "naclip",
    "--purify": "none",
    "--variant": "paper",
    "--windows.short_side": "99",
    "--sfp.max_outliers": "3",
    "--labels.min_area": "0.25",
    "--purification.redundancy": "false",
    "--shard-size": "7",
}
SWITCHES = ["--overwrite", "-v"]


def typed() -> list[str]:
    return [word for pair in FLAGS.items() for word in pair] + SWITCHES


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        label.main([*words])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("form", ["--print_config", "--print_config=skip_default", "--print-config"])
def test_printed_settings_are_a_file_that_gives_the_same_job(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(printed(capsys, *typed(), form))
    direct, _ = parse_with_protocol(label.build_parser(), typed())
    filed, _ = parse_with_protocol(label.build_parser(), ["--config", str(tmp_path / "run.yaml")])
    for kind in (SourceOptions, RunOptions, PoolOptions):
        assert take_fields(filed, kind) == take_fields(direct, kind)
    assert take_segmenter(filed) == take_segmenter(direct)
    assert take_fields(filed, RunOptions).overwrite
    assert take_fields(filed, RunOptions).verbose
    assert take_segmenter(filed).labels.min_area == 0.25


def test_every_flag_fits_into_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    listed = yaml.safe_load(printed(capsys, *typed(), "--print_config"))
    flat = {
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in listed.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    assert flat == {flag.dest for flag in label.build_parser().settings}


def test_a_template_is_printed_without_any_other_flag(capsys: pytest.CaptureFixture[str]) -> None:
    template = yaml.safe_load(printed(capsys, "--print_config"))
    assert template["output"] is None
    assert template["windows"]["size"] == 224


def test_printed_settings_of_a_benchmark_hold_its_constants(capsys: pytest.CaptureFixture[str]) -> None:
    expected, _ = protocol_config("voc21", "sfp", "freecp")
    given = yaml.safe_load(printed(capsys, "--benchmark", "voc21", "--print_config"))
    assert given["windows"]["size"] == expected.windows.size != SegmenterConfig().windows.size
    assert given["purification"]["redundancy_threshold"] == expected.purification.redundancy_threshold


def test_a_benchmark_named_in_the_file_sets_its_constants_and_flags_win_over_both(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "images: x\noutput: y\nbenchmark: voc21\nwindows: {short_side: 99}\nhost: naclip"
    )
    expected, offered = protocol_config("voc21", "naclip", "freecp")
    given = ["--config", str(tmp_path / "run.yaml"), "--windows.stride", "5"]
    values, vocabulary = parse_with_protocol(label.build_parser(), given)
    segmenter = take_segmenter(values)
    assert vocabulary == offered
    assert (segmenter.windows.short_side, segmenter.windows.stride) == (99, 5)
    assert segmenter.windows.size == expected.windows.size
    assert segmenter.purification == expected.purification


@pytest.mark.parametrize(
    ("listed", "lines"),
    [
        ("[cat, dog]", [("cat", ("cat",)), ("dog", ("dog",))]),
        ("[cat, 'sofa, couch']", [("cat", ("cat",)), ("sofa", ("sofa", "couch"))]),
        (
            "\n- background:\n- person: man, woman\n- dog: [puppy, hound]\n- 'no'",
            [("background", ()), ("person", ("man", "woman")), ("dog", ("puppy", "hound")), ("no", ("no",))],
        ),
    ],
)
def test_a_vocabulary_may_be_a_list(
    listed: str, lines: list[tuple[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(f"images: x\noutput: y\nvocabulary: {listed}")
    _, vocabulary = parse_with_protocol(label.build_parser(), ["--config", str(tmp_path / "run.yaml")])
    assert [(entry.name, entry.phrases) for entry in vocabulary.classes] == lines


def test_words_by_commas_reach_the_vocabulary_as_they_are() -> None:
    values = label.build_parser().parse_args(["--output", "x", "--vocabulary", "cat, dog"])
    assert values.vocabulary == "cat, dog"


def test_two_classes_in_one_entry_are_refused() -> None:
    with pytest.raises(VocabularyError, match="give each class an entry of its own"):
        load_vocabulary([{"cat": "kitten", "dog": "puppy"}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("outptu: x", "unknown setting outptu in FILE; did you mean output?"),
        ("num-gpus: 1", "unknown setting num-gpus in FILE; did you mean num_gpus?"),
        ("sfp: {varient: paper}", "unknown setting sfp.varient in FILE; did you mean sfp.variant?"),
        ("xyzzy: 1", "unknown setting xyzzy in FILE; settings have the names of flags"),
        ("sfp: paper", "sfp in FILE is 'paper'; give it settings of its own, such as sfp.variant"),
        ("sfp:", "sfp in FILE is empty; give it settings of its own, such as sfp.variant"),
        ("actors: many", "actors in FILE is 'many'; give a whole number, or null"),
        ("output: 7", "output in FILE is 7; give a folder"),
        ("overwrite:", "overwrite in FILE is empty; give true or false, or leave it out"),
        ("windows: {size: null}", "windows.size in FILE is empty; give a whole number of pixels"),
        ("images: ''", "images in FILE is empty"),
        ("host: spf", "host in FILE is 'spf'; give one of clearclip, clip,"),
        ("benchmark: [voc21]\nhost: {a: b}", "benchmark in FILE is ['voc21']; give one of voc21, context60,"),
        ("shard_size: null\nimages: x", "shard_size in FILE is empty; give a whole number of images"),
        ("vocabulary: [cat, no, 3]", "vocabulary in FILE is ['cat', False, 3]; give words by commas, a file, a shipped"),
        ("output: a\noutput: b", "FILE is no YAML: output is given twice (line 2)"),
        ("images: [", "FILE is no YAML: "),
        ("images:\tx\n\tactors: 3", "FILE is no YAML: "),
        ("images: !!int ''", "FILE is no YAML: string index out of range"),
        ("{[a]: b}", "FILE is no YAML: "),
        ("? images: x", "FILE is no YAML: "),
        ("day: 2001-99-99", "FILE is no YAML: "),
        ("- images", "FILE must hold settings such as 'images: photos/', one a line; got ['images']"),
        ("images", "FILE must hold settings such as 'images: photos/', one a line; got 'images'"),
        ("", "FILE must hold settings such as 'images: photos/', one a line; got nothing"),
        ("config: other.yaml", "unknown setting config in FILE"),
        ("!!python/object/apply:os.system [ls]", "FILE is no YAML: could not determine a constructor"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_line_that_names_it(
    content: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(content)
    assert label.main(["--config", "run.yaml"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error.replace("run.yaml", "FILE")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.yaml", None, "there is no such file"),
        ("folder", "folder", "that is a folder"),
        ("binary.yaml", b"\xff\xfe\x00\x81", "is no text in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    name: str, content: bytes | str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif content:
        Path(name).mkdir()
    with pytest.raises(ConfigError, match=reason) as caught:
        label.build_parser().parse_args(["--config", name])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_one_group_goes_with_its_flags(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("scenes: 3\nseed: 7")
    given = ["--folder", "x", "--training", str(tmp_path / "recipe.yaml"), "--training.seed", "8"]
    values = train_demo.build_parser().parse_args(given)
    assert (values.training.scenes, values.training.seed, values.training.lanes) == (3, 8, 2)


def test_settings_by_their_earlier_names_are_taken_with_a_line_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.yaml").write_text("resolve_gpus: 0.5\n")
    words = ["--config", str(tmp_path / "old.yaml"), "--resolve-actors=3"]
    given = label.build_parser().given(words)
    assert (given["finish_gpus"], given["finish_actors"]) == (0.5, "3")
    assert capsys.readouterr().err.splitlines() == [
        "ovss: warning: --resolve-actors is called --finish-actors now; use that name",
        "ovss: warning: resolve_gpus is called finish_gpus now; use that name",
    ]


def test_a_range_of_workers_is_two_settings_and_a_single_number_one() -> None:
    given = label.build_parser().given(["--actors", "4:64"])
    assert (given["actors"], given["max_actors"]) == ("4", "64")
    assert label.build_parser().given(["--actors=3"]).get("max_actors") is None
