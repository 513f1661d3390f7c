import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs import cli, label
from jobs.near_names import near_names
from ovss_core.errors import OvssError

LABEL_PARSER = label.build_parser()
RIGHT = "--images photos --output out"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line that a command prints; its status must be 2."""
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("ovss: error: ")
    return line.removeprefix("ovss: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("label --vocabluary cat", "unknown flag --vocabluary; did you mean --vocabulary?"),
        ("label --vocab cat", "unknown flag --vocab; did you mean --vocabulary?"),
        ("label --outptu=x", "unknown flag --outptu; did you mean --output?"),
        ("label -images x", "unknown flag -images; did you mean --images?"),
        ("label \u2014images x", "unknown flag \u2014images; did you mean --images?"),
        ("label --gpus 1", "unknown flag --gpus; did you mean --num-gpus or --finish-gpus?"),
        ("label --short_side 3", "unknown flag --short_side; did you mean --windows.short_side?"),
        ("label --sfp.varient paper", "unknown flag --sfp.varient; did you mean --sfp.variant?"),
        ("label --xyzzy 1", "unknown flag --xyzzy; ovss label --help lists them all"),
        ("label", "nothing was given; usage: ovss label --images PATH --vocabulary WORDS --output FOLDER"),
        ("label --images photos", "give --output FOLDER: Folder for everything the run writes"),
        ("label --output", "--output needs a value: give a folder"),
        ("label --output --images x", "--output needs a value: give a folder"),
        ("label --output ''", "--output is empty (a variable that is not set?); give a folder"),
        (f"label {RIGHT} --actors", "--actors needs a value: give a whole number"),
        (f"label {RIGHT} --actors many", "--actors is 'many'; give a whole number, or null"),
        (f"label {RIGHT} --actors 1.5", "--actors is '1.5'; give a whole number, or null"),
        (f"label {RIGHT} --actors=", "--actors is ''; give a whole number, or null"),
        (f"label {RIGHT} --actors -1 --vocabulary voc21", "actors is -1; give at least 1"),
        (f"label {RIGHT} --no-progress-s soon", "--no-progress-s is 'soon'; give a number of seconds"),
        (f"label {RIGHT} --no-progress-s .nan", "--no-progress-s is not a number; give a number of seconds"),
        (
            f"label {RIGHT} --no-progress-s 0 --vocabulary voc21",
            "no_progress_s is 0.0; give more than 0 seconds",
        ),
        (f"label {RIGHT} --max-bytes 0 --vocabulary voc21", "max_bytes is 0; give at least 1"),
        (
            f"label {RIGHT} --host spf",
            "sclip, sfp; did you mean sfp?",
        ),
        (f"label {RIGHT} --host sfp,nacli", "--host is 'sfp,nacli'; give one of clearclip, clip,"),
        (f"label {RIGHT} --host sfp,nacli", "sclip, sfp; did you mean naclip?"),
        (f"label {RIGHT} --host sfp,gem --vocabulary voc21", "hosts 'sfp' and 'gem' change the blocks below"),
        (
            f"label {RIGHT} --variant papr",
            "--variant is 'papr'; give one of image, filter, released, paper; did you mean paper?",
        ),
        (f"label {RIGHT} --labels.background frist_class", "did you mean first_class?"),
        (
            f"label {RIGHT} --precision float8",
            "--precision is 'float8'; give one of float32, bfloat16, float16; did you mean",
        ),
        (
            f"label {RIGHT} --sfp.outlier_mitigation maybe",
            "--sfp.outlier_mitigation is 'maybe'; give true or false",
        ),
        (f"label {RIGHT} --host null", "--host is 'null'; give one of clearclip"),
        (f"label {RIGHT} --benchmark voc12", "--benchmark is 'voc12'; give one of voc21, context60,"),
        (
            f"label {RIGHT} --overwrite false",
            "--overwrite takes no value, got 'false'; give it alone, or leave it out",
        ),
        (
            f"label {RIGHT} --overwrite=no",
            "--overwrite takes no value, got 'no'; give it alone, or leave it out",
        ),
        ("label photos", "unexpected 'photos'; name what it is, as in --images PATH"),
        (
            "label --images a.jpg b.jpg c.jpg --output x",
            "unexpected 'b.jpg' and 1 more after the value of --images",
        ),
        (
            "label --images a --images b --output x",
            "--images is given twice; give one value that covers both",
        ),
        (f"label {RIGHT} -- x", "unexpected '--'"),
        (f"label {RIGHT} --vocabulary cat, dog", "unexpected 'dog' after the value of --vocabulary"),
        (f"label {RIGHT} --vocabulary voc2l", "unknown vocabulary 'voc2l'"),
        (f"label {RIGHT} --vocabulary '!!int'", "a value cannot be read (string index out of range)"),
        (f"label {RIGHT} --print_config=all", 'Invalid option "all" for --print_config'),
        (
            "evaluate --benchmark voc21 --root x --grd",
            "unknown flag --grd; did you mean --grid or --tlp.grid?",
        ),
        ("evaluate --images x", "give --vocabulary (words by commas such as cat,dog"),
        ("scenes --output x --count few", "--count is 'few'; give a whole number"),
        ("scenes --count 3", "give --output FOLDER"),
        (
            "scenes --output x --count 3 --format tar",
            "--format is 'tar'; give one of folder, parquet, webdataset",
        ),
        ("scenes --output x --count 0", "--count is 0; give a number from 1 to"),
        ("train-demo", "nothing was given; usage: ovss train-demo --folder FOLDER"),
        ("train-demo --folder x --training.sceens 3", "did you mean --training.scenes?"),
        (
            "train-demo --folder x --training no.yaml",
            "cannot read the settings no.yaml: there is no such file",
        ),
        ("train-demo --folder x --training.scenes 0", "raise scenes"),
        ("benchmark --repeats x", "--repeats is 'x'; give a whole number"),
        ("benchmark --vocabularies 21", "--vocabularies is '21'; give a list such as [a,b]"),
        ("measure-demo --hosts maskclip,clearclp", "did you mean 'clearclip'?"),
        ("measure-demo --count 0", "--count is 0; give at least 1"),
    ],
)
def test_a_typing_error_is_one_line_with_what_to_do(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(capsys, *shlex.split(words))


def test_an_address_in_a_message_has_lost_its_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, "label", "s3://key:hidden@bucket/photos?signature=hidden", "--output", "x")
    assert "s3://bucket/photos" in line
    assert "hidden" not in line


def test_underscores_and_dashes_are_the_same_in_flags() -> None:
    values = LABEL_PARSER.parse_args(
        ["--images", "x", "--output", "y", "--num_gpus", "0", "--windows.short-side", "9", "--retry_failed"]
    )
    assert (values.num_gpus, values.windows.short_side, values.retry_failed) == (0, 9, True)


def test_values_may_begin_with_a_dash_or_hold_an_equals_sign() -> None:
    values = LABEL_PARSER.parse_args(["--images=-x", "--output", "a=b", "--vocabulary", "-1"])
    assert (values.images, values.output, values.vocabulary) == ("-x", "a=b", "-1")


@pytest.mark.parametrize(
    ("given_name", "near"),
    [
        ("lable", ["table", "label"]),
        ("evalute", ["evaluate"]),
        ("train_demo", ["train-demo"]),
        ("scene", ["scenes"]),
        ("x", []),
        ("", []),
    ],
)
def test_near_names_are_found(given_name: str, near: list[str]) -> None:
    assert near_names(given_name, cli.COMMANDS) == near


_OPTIONS = [flag.option for flag in LABEL_PARSER.settings]
_WORDS = st.one_of(
    st.sampled_from(_OPTIONS),
    st.sampled_from(_OPTIONS).flatmap(
        lambda option: st.text(max_size=8).map(lambda text: f"{option}={text}")
    ),
    st.sampled_from(["1", "-1", "1e3", "null", "true", "[1,2]", "{a: b}", "{", "x,y", "", " ", "--", "-", "=", "+", "~", "!!x", "&a *a", "- a", "@", "%", "\x00"]),
    st.sampled_from(["--config", "--config={images: x}", "--config={sfp: {variant: paper}}", "--config={sfp: 3}", "--config=[", "--vocabulary+", "--images+=x", "--host.help", "--print_config="]),
    st.text(max_size=12),
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_WORDS, max_size=6))
@example(["-\n"])
def test_whatever_is_typed_gives_values_or_one_line(words: list[str]) -> None:
    line = ""
    try:
        LABEL_PARSER.parse_args(["--output", "x", *words])
    except OvssError as error:
        line = str(error)
    except SystemExit as end:
        line = "" if end.code == 0 else f"status {end.code}"
    assert line == "" or re.fullmatch(r"[^\n]{5,600}", line), line


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_flag_of_every_command_refuses_nonsense_in_one_line(command: str) -> None:
    parser = import_module(cli.COMMANDS[command][0]).build_parser()
    required = [f"{flag.option}={(*flag.choices, 1)[0]}" for flag in parser.settings if flag.required]
    for flag in parser.settings:
        if flag.switch or flag.kinds[0] in (str, Path):
            continue
        with pytest.raises(OvssError, match=rf"^{re.escape(flag.option)} is 'x y'; give [^\n]+$"):
            parser.parse_args([*required, f"{flag.option}=x y"])
