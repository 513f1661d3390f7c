"""The parser of one command: jsonargparse's, with sections in its help and every mistake said in one line."""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from jobs.flags import Flag
from jobs.near_names import did_you_mean
from jobs.settings_file import YAML_FAULTS, read_settings
from jobs.typed import PRINT_CONFIG, Typed, read_words, shown
from ovss_core.errors import ConfigError

HELP_SECTION = "settings file and help"
_CONFIG = Flag("config", str, "YAML file with any of these flags, such as 'num_gpus: 1'.", HELP_SECTION)
_PRINT = "Print all settings as they are with these flags, as a file for --config, and exit; =skip_default leaves the defaults out."
_OWN_FLAGS = [
    _CONFIG,
    Flag(PRINT_CONFIG, bool, _PRINT, HELP_SECTION, False),
    Flag("help", bool, "Print this page.", HELP_SECTION, False, short="-h"),
    Flag("version", bool, "Print the versions of ovss, Python, torch and Ray.", HELP_SECTION, False),
]


class CommandParser(ArgumentParser):  # type: ignore[misc]
    """Parses a command's flags and settings file.

    Args:
        command: As it is typed, ``ovss label``.
        usage: Its flags in short.
        description: What it does, with examples; lines stay as they are.
        flags: All its flags but those of every command.
        sections: Titles of the help's sections in their order, with what stands below them; sections that only flags
            name follow.
    """

    def __init__(
        self,
        command: str,
        usage: str,
        description: str,
        flags: Iterable[Flag],
        sections: Mapping[str, str | None],
    ) -> None:
        super().__init__(
            prog=command,
            usage=f"{command} {usage}",
            description=description,
            formatter_class=_HelpPage,
            allow_abbrev=False,  # a part of a flag's name is proposed, not taken
        )
        listed = list(flags)
        self.settings = [flag for flag in listed if not flag.group_file]
        self._known = [*listed, *_OWN_FLAGS]
        self._sources: dict[str, tuple[str, Any]] = {}
        named = {flag.section for flag in listed}
        titles = [title for title in sections if title in named]
        groups = {
            title: self.add_argument_group(title, sections.get(title))
            for title in dict.fromkeys([*titles, *(flag.section for flag in listed)])
        }
        for flag in listed:
            _add(groups[flag.section], flag)
        self._add_own_flags()

    def given(self, words: Sequence[str] | None) -> dict[str, Any]:
        """Return the settings that the words and their settings file give, as they stand there, by name.

        Raises:
            ConfigError: A word or a setting that means nothing here.
        """
        typed = _words(words)
        self._take([] if any(word in ("-h", "--help", "--version") for word in typed) else typed)
        return {name: value for name, (_, value) in self._sources.items()}

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Namespace:
        """Parse the words of a command line.

        Raises:
            ConfigError: They cannot be understood; the message says which, and what to do.
        """
        words = _words(args)
        asked = [word for word in words if word in ("-h", "--help", "--version")]
        taken = [] if asked else self._take(words)
        if not words and any(flag.required for flag in self.settings):
            raise ConfigError(f"nothing was given; usage: {self.usage} ({self.prog} --help lists the flags)")
        try:
            values = super().parse_args(asked or [entry.word for entry in taken], *rest, **options)
        except ConfigError:
            raise
        except YAML_FAULTS as error:
            text = shown(str(error), quoted=False)
            raise ConfigError(
                f"a value cannot be read ({text}); put one that begins with ! or & in quotes"
            ) from error
        self._check(values)
        return values

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say in one line what jsonargparse says in many.

        Raises:
            ConfigError: Always.
        """
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, ConfigError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        key = re.search(r'[Kk]ey "([^"]+)"', message)
        flag = next((flag for flag in self.settings if key and flag.dest == key[1]), None)
        if flag is None:
            raise ConfigError(" ".join(message.split())) from ex
        raise self._no_choice(flag, *self._sources.get(flag.dest, (flag.option, None))) from ex

    def _no_choice(self, flag: Flag, place: str, value: Any) -> ConfigError:
        """Return what is said of a value that cannot be taken."""
        typed = str(value)
        if flag.joined:  # the first that is none
            names = [name.strip() for name in typed.split(",")]
            typed = next((name for name in names if name not in flag.choices), typed)
        near = did_you_mean(typed, flag.choices, likeness=0.6)
        return ConfigError(f"{place} is {shown(value)}; give {flag.expected}{near}")

    def _add_own_flags(self) -> None:
        """Add the flags of every command, as the last section."""
        self.add_argument("--config", action="config", metavar="FILE")
        self.add_argument("--version", action=_ShowVersions)
        texts = {flag.option.replace("-", "_"): flag.meaning for flag in _OWN_FLAGS}
        for action in self._optionals._group_actions:
            action.help = texts[action.option_strings[-1].replace("-", "_")]
            if f"--{PRINT_CONFIG}" in action.option_strings:
                action.metavar = "\b[=skip_default]"
        self._optionals.title = HELP_SECTION
        self._action_groups.append(self._action_groups.pop(self._action_groups.index(self._optionals)))

    def _take(self, words: Sequence[str]) -> list[Typed]:
        """Read words and settings files, and note where each setting came from."""
        names = [flag.dest for flag in self.settings]
        typed: dict[str, tuple[str, Any]] = {}
        self._sources, taken = {}, []
        for entry in read_words(words, self._known, self.prog):
            dest, value = entry.flag.dest, entry.value
            if value is not None and (dest == _CONFIG.dest or entry.flag.group_file):
                prefix = f"{dest}." if entry.flag.group_file else ""
                settings = read_settings(value, names, prefix)
                self._note(settings, shown(value, quoted=False))
                if prefix:
                    entry = replace(entry, flag=_CONFIG, value=json.dumps(settings))
            else:
                typed[dest] = (entry.flag.option, True if value is None else value)
            taken.append(entry)
        self._sources |= typed
        return taken

    def _note(self, settings: Mapping[str, Any], place: str) -> None:
        """Note what a file sets, and refuse a name without a value where null means nothing."""
        self._sources |= {name: (f"{name} in {place}", value) for name, value in settings.items()}
        for flag in self.settings:
            if flag.dest in settings and settings[flag.dest] is None and not (flag.optional or flag.required):
                raise ConfigError(f"{flag.dest} in {place} is empty; give {flag.expected}, or leave it out")

    def _check(self, values: Namespace) -> None:
        """Refuse what has the right type and yet cannot be meant: nothing, an empty text, and not a number."""
        missing = []
        for flag in self.settings:
            value = values[flag.dest]
            place = self._sources.get(flag.dest, (flag.option,))[0]
            if value is None and flag.required:
                missing.append(flag)
            elif isinstance(value, str) and not value.strip():
                raise ConfigError(
                    f"{place} is empty (a variable that is not set?); give {flag.expected}"
                    + ("" if flag.required else ", or leave it out")
                )
            elif flag.joined and not {name.strip() for name in value.split(",")} <= set(flag.choices):
                raise self._no_choice(flag, place, value)
            elif isinstance(value, float) and math.isnan(value):
                raise ConfigError(f"{place} is not a number; give {flag.expected}")
        if missing:
            told = " and ".join(f"{flag.option} {flag.metavar}" for flag in missing)
            first = missing[0].meaning.partition(". ")[0].rstrip(".")
            raise ConfigError(f"give {told}" + (f": {first}" if len(missing) == 1 else ""))


def versions() -> str:
    """Return the versions of ovss and of what it stands on, without importing any of them."""
    others = ", ".join(f"{name} {_version(name)}" for name in ("torch", "ray"))
    return f"ovss {_version('ovss')} (Python {python_version()}, {others})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # `ray job submit --working-dir .` runs ovss from its folder
        return "not installed"


def _words(given: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if given is None else given)


def _add(group: Any, flag: Flag) -> None:
    options: dict[str, Any] = {"help": flag.help}
    if flag.group_file:
        options |= {"action": _Listed, "metavar": flag.metavar}
    elif flag.switch:
        options["action"] = "store_true"
    else:
        kind = str if flag.joined else flag.hint
        options |= {"type": kind, "default": flag.default, "metavar": flag.metavar}
    group.add_argument(*filter(None, (flag.short, flag.option)), **options)


class _Listed(argparse.Action):
    """Only stands in the help: its file is read before argparse sees it."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, **options)

    def __call__(self, *_: Any) -> None:
        """Do nothing."""


class _ShowVersions(argparse.Action):
    """Prints the versions; they are looked up only when they are asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print and leave."""
        print(versions())
        parser.exit()


class _HelpPage(DefaultHelpFormatter):  # type: ignore[misc]
    """The help: each flag's text as it is, and the description's lines as they are."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 28, **options})

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # jsonargparse adds --flag+, which appends to a list; the page has enough without it
        return re.sub(r", --[\w.-]+\+ \S+", "", super()._format_action_invocation(action))

    def _expand_help(self, action: argparse.Action) -> str:
        return action.help or ""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))
