"""What the pages say exists: links, paths, names in the code, commands with their flags, targets of `make`."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import grimp
import pyarrow as pa
import pytest

from docs.generated import (
    ROOTS,
    describe_commands,
    describe_flags,
    describe_groups,
    describe_imports,
    describe_protocols,
    describe_schema,
    describe_type,
    markdown_table,
)
from jobs import corrections
from jobs.cli import COMMANDS, RENAMED
from jobs.flags import Flag
from ovss_core.config import HEAD_SETTINGS, SegmenterConfig
from ovss_core.evaluation.benchmarks import BENCHMARKS
from pipelines.run.schema import FAILURES, LABELS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "ovss_core").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT),
)
_EVERY_COMMAND = {"--config", "--print_config", "--help", "--version"}
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|\{literalinclude\} (\S+)")
_NAME = re.compile(r"(?<!-)\b(?:jobs|pipelines|ovss_core|tests|examples)(?:\.[A-Za-z_]\w*)+")
_PATH = re.compile(r"`((?:jobs|pipelines|ovss_core|tests|examples|docs)/[\w./-]*)`")
_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.M | re.S)


def wrong_links(text: str, folder: Path) -> Iterator[str]:
    """Yield relative links, and files to be shown, that lead nowhere."""
    for match in _LINK.finditer(text):
        target = (match[1] or match[2]).partition("#")[0]
        if target and "://" not in target and not (folder / target).exists():
            yield f"there is no {target}"


def wrong_paths(text: str, folder: Path) -> Iterator[str]:
    """Yield paths of the checkout, in code font, that are not there."""
    yield from (f"there is no {path}" for path in _PATH.findall(text) if not (ROOT / path).exists())


def wrong_names(text: str, folder: Path) -> Iterator[str]:
    """Yield dotted names of modules, classes and functions that do not exist."""
    for name in dict.fromkeys(_NAME.findall(text)):
        is_file = (ROOT / name).exists() or re.search(rf"{re.escape(name)}/|\w/{re.escape(name)}", text)
        if not is_file and not _exists(name):
            yield f"there is no {name}"


@lru_cache
def _exists(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            declared = is_dataclass(found) and part in {entry.name for entry in fields(found)}
            if not hasattr(found, part) and not declared:
                return False
            found = getattr(found, part, None)
        return True
    return False


def wrong_commands(text: str, folder: Path) -> Iterator[str]:
    """Yield commands, in blocks and in code font, with a name or a flag that is not known."""
    blocks = "\n".join(_FENCE.findall(text)).replace("\\\n", " ")
    lines = [line for line in blocks.splitlines() if re.search(r"\bovss |-m (jobs|tests)\b|^make ", line)]
    spans = re.findall(r"`((?:ovss|make|python -m) [^`]+)`", text.replace("\n", " "))
    for line in [*lines, *spans]:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a block of Python, or prose with an apostrophe
            continue
        yield from _wrong_words(words)


def _wrong_words(words: list[str]) -> Iterator[str]:
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        yield from (f"there is no target {word}" for word in words[1:] if word not in targets)
    for place, word in enumerate(words):
        after = words[place + 1 :]
        if word == "-m" and after and after[0].startswith(("jobs", "tests")) and not find_spec(after[0]):
            yield f"there is no module {after[0]}"
        command = _command(word, after)
        if command is None or command in RENAMED:
            continue
        if command not in COMMANDS:
            yield f"there is no command {command}"
            return
        yield from _wrong_flags(command, after[1:])


def _command(word: str, after: list[str]) -> str | None:
    if word == "ovss" and after and not after[0].startswith("-") and after[0].islower():
        return after[0]
    jobs = {module: name for name, (module, _) in COMMANDS.items()}
    return jobs.get(after[0]) if word == "-m" and after else None


def _wrong_flags(command: str, words: list[str]) -> Iterator[str]:
    known = {flag.option: flag for flag in _flags(command)}
    shorts = {flag.short for flag in _flags(command)}
    for word, value in pairwise([*words, ""]):
        option = word.partition("=")[0]
        if option in known:
            choices = known[option].choices
            if choices and re.fullmatch(r"[a-z0-9_]+", value) and value not in choices:
                yield f"{command} {option} cannot be {value}"
        elif option.startswith("-") and option not in _EVERY_COMMAND | shorts:
            yield f"{command} has no {option}"


@lru_cache
def _flags(command: str) -> list[Flag]:
    settings: list[Flag] = import_module(COMMANDS[command][0]).build_parser().settings
    return [*settings, *corrections.build_parser().settings] if command == "evaluate" else settings


CHECKS: tuple[Callable[[str, Path], Iterator[str]], ...] = (
    wrong_links,
    wrong_paths,
    wrong_names,
    wrong_commands,
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [f"{page.relative_to(ROOT)}: {wrong}" for check in CHECKS for wrong in check(text, page.parent)]
    assert not found


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("see [here](docs/nowhere.md)", "there is no docs/nowhere.md"),
        ("```{literalinclude} examples/none.py\n```", "there is no examples/none.py"),
        ("in `tests/nothing.py`", "there is no tests/nothing.py"),
        ("by `ovss_core.images.resize.enlarge`", "there is no ovss_core.images.resize.enlarge"),
        (
            "field `ovss_core.config.WindowConfig.depth`",
            "there is no ovss_core.config.WindowConfig.depth",
        ),
        ("`python -m tests.nobody`", "there is no module tests.nobody"),
        ("type `ovss labl --images x`", "there is no command labl"),
        ("```\novss label --images x \\\n    --pictures y\n```", "label has no --pictures"),
        ("```sh\nA=1 ovss label --host sfq --output x  # fast\n```", "label --host cannot be sfq"),
        ("```\nray job submit -- python -m jobs.label --nodes 3\n```", "label has no --nodes"),
        ("`make tea`", "there is no target tea"),
    ],
)
def test_what_is_not_there_is_found(text: str, wrong: str) -> None:
    assert wrong in [found for check in CHECKS for found in check(text, ROOT)]


def test_names_that_are_there_are_let_pass() -> None:
    text = (
        "[a](README.md#try-it), `tests/golden/`, `ovss_core.config.SegmenterConfig.tower_part`, "
        "`ovss_core.images.decode.EncodedImage`, `ovss_core.results.BoxDecision.winner`, `ovss verify OUT`, "
        "`ovss --version`, `python -m jobs.label --vocabulary cat,dog -v`, `make test-slow`"
    )
    assert [found for check in CHECKS for found in check(text, ROOT)] == []


def test_every_page_is_read_and_every_package_of_the_core_is_named_in_the_architecture() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert names >= {"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/development.md"}
    drawn = describe_imports(grimp.build_graph(*ROOTS, cache_dir=None))
    rooms = [path.parent.name for path in (ROOT / "ovss_core").glob("*/__init__.py")]
    assert all(f"`ovss_core.{room}` |" in drawn for room in rooms)
    [engine] = [line for line in drawn.splitlines() if line.startswith("| `ovss_core.engine`")]
    assert "`ovss_core.dense_heads`" in engine
    assert "pipelines" not in engine


def test_the_columns_of_a_table_come_with_type_and_meaning_and_none_without_a_meaning() -> None:
    assert describe_schema(LABELS).count("\n") == 1 + len(LABELS)
    assert "| `reason` | string | one line that says what was wrong |" in describe_schema(FAILURES)
    assert describe_type(pa.list_(pa.struct([("x", pa.float32()), ("names", pa.list_(pa.string()))]))) == (
        "list of {x: float32, names: list of string}"
    )
    with pytest.raises(ValueError, match="'b' has no description"):
        describe_schema(pa.schema([LABELS.field("uri"), pa.field("b", pa.int32())]))


def test_every_flag_of_a_command_has_its_line_and_every_benchmark_its_constants() -> None:
    written = "\n".join(table for _, table in describe_flags(_flags("label")))
    assert all(f"`{flag.dest}`" in written for flag in _flags("label"))
    assert all(f"| `{name}` |" in describe_protocols() for name in BENCHMARKS)
    assert markdown_table(("a|b",), [("x\ny",)]) == "| a\\|b |\n| --- |\n| x y |"


def test_the_page_of_settings_has_every_command_and_every_group_of_what_decides_a_mask() -> None:
    groups, commands = describe_groups(), describe_commands()
    for name in HEAD_SETTINGS | {"model", "windows", "purification", "car", "labels", "proxy"}:
        assert (
            f".. autoclass:: ovss_core.config.{type(getattr(SegmenterConfig(), name)).__name__}\n" in groups
        )
    assert all(f"### ovss {name}\n" in commands for name in COMMANDS)
    assert "| `--points N` | `points` |" in commands  # of `ovss regions`
