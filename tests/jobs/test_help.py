import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.metadata import version
from typing import get_args, get_type_hints

import pytest

from jobs import cli
from jobs.arguments import IMAGES, JOB_HOMES, START, make_parser
from jobs.flags import Flag, flags_of
from jobs.parser import HELP_SECTION, CommandParser
from ovss_core import config
from ovss_core.config import SegmenterConfig
from pipelines.evaluate.options import PairOptions
from pipelines.label.options import OutputOptions
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions

COMMANDS = sorted(cli.COMMANDS)


def parser_of(command: str) -> CommandParser:
    parser: CommandParser = import_module(cli.COMMANDS[command][0]).build_parser()
    return parser


def page_of(command: str, monkeypatch: pytest.MonkeyPatch, columns: int = 100) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    page: str = parser_of(command).format_help()
    return page


def sections_of(page: str) -> Iterator[tuple[str, str]]:
    """Yield the title and the text of each section."""
    parts = page.split("\n\n")
    for place, part in enumerate(parts):
        title = part.partition("\n")[0]
        if title.endswith(":") and not title.startswith(" "):
            yield title.rstrip(":"), part if "  --" in part or "  -h" in part else part + parts[place + 1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_text_and_stands_in_a_named_section(command: str) -> None:
    parser = parser_of(command)
    shown = [action for group in parser._action_groups for action in group._group_actions]
    assert {action.dest for action in shown} == {action.dest for action in parser._actions}
    for group in parser._action_groups:
        if group._group_actions:
            assert group.title not in (None, "", "options", "positional arguments")
        for action in group._group_actions:
            name = action.option_strings[-1]
            assert len((action.help or "").split()) > 1, f"{command} {name} has no text"
            assert action.help is not None
            assert action.help[0].isupper() or action.help[0] in "\"'", f"{command} {name}: {action.help}"
            assert "`" not in action.help
            assert "None" not in action.help
            assert action.nargs == 0 or action.metavar, f"{command} {name} does not say what its value is"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_choice_and_unit_is_on_the_page(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(command, monkeypatch)
    assert max(map(len, page.splitlines())) <= 110
    for flag in parser_of(command).settings:
        assert f"{flag.option} {flag.metavar}" in page or flag.switch
        assert all(value in page for value in flag.choices)
        if flag.dest.endswith("_s"):
            assert flag.metavar == "SECONDS"
        if flag.dest.endswith("_bytes"):
            assert flag.metavar == "BYTES"


@pytest.mark.parametrize("command", ["label", "evaluate"])
def test_the_first_section_is_what_a_newcomer_needs_and_research_comes_last(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = page_of(command, monkeypatch)
    sections = dict(sections_of(page))
    assert list(sections) == [
        "start here",
        "which images are read",
        "the run",
        "cluster and workers",
        "quality: dense head, purification, windows, labels",
        "switches for research",
        HELP_SECTION,
    ]
    first = sections["start here"]
    wanted = ["--images", "--vocabulary", "--output", "--model", "--pretrained"]
    assert [flag for flag in wanted if f"  {flag} " in first] == wanted
    assert len(parser_of(command)._action_groups[2]._group_actions) <= 11
    quality = " ".join(sections["quality: dense head, purification, windows, labels"].split())
    assert "--host NAME " in quality
    assert "One of clearclip, clip, " in quality
    assert "--sfp." in sections["switches for research"]
    assert all("--sfp." not in text for title, text in sections.items() if title != "switches for research")


def test_literals_of_the_settings_are_choices_of_their_flags() -> None:
    flags = {flag.dest: flag for flag in parser_of("label").settings}
    literals = {
        "precision": config.Precision,
        "purify": config.PurificationMethod,
        "variant": config.PurificationVariant,
        "labels.background": config.Background,
        "confidence": config.ConfidenceDetail,
        "purification.thresholds": config.Thresholds,
        "sfp.variant": config.SfpVariant,
        "sfp.outlier_rule": config.OutlierRule,
    }
    assert {dest: flags[dest].choices for dest in literals} == {
        dest: get_args(kind) for dest, kind in literals.items()
    }


def test_every_setting_is_a_flag_of_its_job() -> None:
    label = {flag.dest for flag in parser_of("label").settings}
    for kind in (SourceOptions, RunOptions, PoolOptions, OutputOptions):
        assert {entry.name for entry in fields(kind)} <= label
    groups = {name: hint for name, hint in get_type_hints(SegmenterConfig).items() if name != "model"}
    label |= {f"labels.{name}" for name in ("confidence", "min_confidence") if name in label}
    for prefix in ("windows", "sfp", "labels"):
        assert {f"{prefix}.{entry.name}" for entry in fields(groups[prefix])} <= label
    assert {entry.name for entry in fields(PairOptions)} <= {
        flag.dest for flag in parser_of("evaluate").settings
    }


@dataclass(frozen=True)
class GrownOptions:
    """Options that somebody added a field to.

    Attributes:
        images: Where they are.
        patience_s: Wait so many seconds for a silent server, then give
            up; None waits for ever.
        fields: Names of fields, of any number.
    """

    images: str
    patience_s: float | None = None
    fields: tuple[str, ...] = ("jpg",)


def test_a_field_that_nobody_placed_stands_in_its_own_section_with_its_docstring() -> None:
    flags = flags_of(GrownOptions, IMAGES)
    parser = make_parser("x", "", "", flags, ("images",), JOB_HOMES)
    [first, second] = [group for group in parser._action_groups if group.title in (START, IMAGES)]
    assert [action.option_strings[0] for action in first._group_actions] == ["--images"]
    assert [action.option_strings[0] for action in second._group_actions] == ["--patience-s", "--fields"]
    assert second._group_actions[0].help == (
        "Wait so many seconds for a silent server, then give up; unset waits for ever."
    )
    values = parser.parse_args(["--images", "x", "--patience_s", "2", "--fields", "[png,webp]"])
    assert (values.images, values.patience_s, values.fields) == ("x", 2.0, ("png", "webp"))


def test_a_bare_word_is_the_value_of_the_flag_that_may_stand_alone() -> None:
    flags = [
        Flag("output", str, "Folder of the results.", START, required=True, bare=True),
        Flag("content", bool, "Read every file whole.", START, False),
    ]
    values = make_parser("verify", "FOLDER", "", flags).parse_args(["--content", "out/photos"])
    assert (values.output, values.content) == ("out/photos", True)


@pytest.mark.parametrize("module", ["jobs.label", "jobs.cli"])
def test_help_needs_neither_torch_nor_ray_nor_arrow(module: str) -> None:
    arguments = ["--help"] if module == "jobs.label" else ["label", "--help"]
    code = (
        f"import sys, atexit, {module} as job\n"
        "atexit.register(lambda: print([n for n in ('torch', 'ray', 'pyarrow', 'open_clip') if n in sys.modules]))\n"
        f"job.main({arguments})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--vocabulary WORDS" in done.stdout
    assert done.stdout.endswith("\n[]\n")


def test_the_other_parsers_need_no_torch_either() -> None:
    modules = [cli.COMMANDS[command][0] for command in COMMANDS if command != "label"]
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"for module in {modules}:\n"
        "    import_module(module).build_parser()\n"
        "    print(module, [name for name in ('torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"{module} []\n" for module in modules)


def test_help_comes_in_a_moment() -> None:
    """It takes half a second of the processor, however long a busy machine takes to give it."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "jobs.cli", "label", "--help"], capture_output=True, check=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 3


@pytest.mark.parametrize(
    "words", [["--version"], ["label", "--version"], ["scenes", "--count", "3", "--version"]]
)
def test_versions_are_told_without_importing_what_they_belong_to(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert cli.main(words) == 0
    except SystemExit as end:
        assert end.code == 0  # noqa: PT017
    told = capsys.readouterr().out
    assert told.startswith(
        f"ovss {version('ovss')} (Python {sys.version.split()[0]}, torch {version('torch')}, "
    )
    assert f"ray {version('ray')})" in told


def test_the_command_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in COMMANDS)
    with pytest.raises(SystemExit) as end:
        cli.main(["help", "scenes"])
    assert end.value.code == 0
    assert "--count N" in capsys.readouterr().out
