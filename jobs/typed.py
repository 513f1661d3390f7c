"""What was typed: every word of a command line belongs to a flag, or one line says which does not."""

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from jobs.flags import Flag
from jobs.near_names import DASHES, did_you_mean
from ovss_core.errors import ConfigError

PRINT_CONFIG = "print_config"
"""The one flag whose value may be left out; jsonargparse wants it as ``--print_config=skip_default``."""
_APPEND = "+"
_RANGE = re.compile(r"(\d+):(\d+)")
_ADDRESS = re.compile(r"(\w+://)(?:[^\s/'\"]*@)?([^\s?#'\"]*)[^\s'\"]*")
"""An address: scheme, the user's name and password, the place, and a query or fragment that may hold a signature."""


@dataclass(frozen=True)
class Typed:
    """A flag as it was typed.

    Attributes:
        value: None for a flag that takes none.
        append: The value is added to the list so far, as in ``--vocabularies+ 21``.
    """

    flag: Flag
    value: str | None
    append: bool = False

    @property
    def word(self) -> str:
        """The flag as one word that cannot be read in two ways."""
        option = self.flag.option if self.flag.dest != PRINT_CONFIG else f"--{PRINT_CONFIG}"
        return f"{option}{_APPEND * self.append}" + ("" if self.value is None else f"={self.value}")


RENAMED = {"resolve_actors": "finish_actors", "resolve_gpus": "finish_gpus"}
"""Settings that had other names in an earlier release; those still work, with a line that says so."""


def current_name(name: str, known: Collection[str]) -> str:
    """Return what a setting, or a flag with its dashes, is called now; an earlier name is warned of."""
    plain = name.removeprefix("--").replace("-", "_")
    new = RENAMED.get(plain)
    if new is None or plain in known or new not in known:
        return name
    if name.startswith("--"):
        new = f"--{new.replace('_', '-')}"
    print(f"ovss: warning: {name} is called {new} now; use that name", file=sys.stderr)
    return new


def read_words(words: Sequence[str], flags: Iterable[Flag], command: str) -> list[Typed]:
    """Match a command line's words with flags; underscores and dashes are the same in a flag's name.

    Raises:
        ConfigError: An unknown flag, a flag without its value, or a word that belongs to none.
    """
    known = {_spelling(name): flag for flag in flags for name in (flag.option, flag.short) if name}
    dests = {flag.dest for flag in known.values()}
    taken: list[Typed] = []
    pending = list(words)
    while pending:
        word = pending.pop(0)
        name, equals, given = word.partition("=")
        name = current_name(name, dests)
        flag = known.get(_spelling(name.removesuffix(_APPEND)))
        if flag is None:
            flag = _bare(word, known.values(), taken)
            if flag is None:
                raise ConfigError(_stray(word, pending, taken, known, command))
            taken.append(Typed(flag, word, flag.many))
            continue
        if flag.switch and equals and flag.dest != PRINT_CONFIG:
            raise ConfigError(
                f"{flag.option} takes no value, got {shown(given)}; give it alone, or leave it out"
            )
        value = given if equals else None
        if not flag.switch and not equals:
            valueless = not pending or _is_flag(pending[0])
            if valueless and flag.alone is not None:
                pending.insert(0, flag.alone)
            elif valueless:
                raise ConfigError(f"{flag.option} needs a value: give {flag.expected}")
            value = pending.pop(0)
        taken += _spread(Typed(flag, value, name.endswith(_APPEND)), known)
    _refuse_repeated(taken)
    return taken


def _spread(entry: Typed, known: Mapping[str, Flag]) -> list[Typed]:
    """Read ``--actors 4:64`` as two settings, the least and the most: YAML would take that for minutes and seconds."""
    most = known.get(_spelling(f"--max-{entry.flag.dest}"))
    match = _RANGE.fullmatch(entry.value or "")
    if most is None or match is None:
        return [entry]
    return [replace(entry, value=match[1]), Typed(most, match[2])]


def _bare(word: str, flags: Iterable[Flag], taken: Sequence[Typed]) -> Flag | None:
    """Return the flag whose value may stand alone, where it has none yet and the word is no flag."""
    given = {entry.flag.dest for entry in taken}
    free = (flag for flag in flags if flag.bare and (flag.many or flag.dest not in given))
    return None if word[:1] in DASHES else next(free, None)


def _stray(
    word: str, pending: Sequence[str], taken: Sequence[Typed], known: Mapping[str, Flag], command: str
) -> str:
    """Say what to do about a word that is no flag and no flag's value."""
    if word[:1] in DASHES and len(word) > 1 and word != "--":
        name = shown(word.partition("=")[0], quoted=False)
        meant = did_you_mean(name, dict.fromkeys(flag.option for flag in known.values()))
        return f"unknown flag {name}{meant or f'; {command} --help lists them all'}"
    if not taken:
        way = "; name what it is, as in --images PATH" if "--images" in known else ""
        return f"unexpected {shown(word)}{way}; {command} --help lists the flags"
    last = taken[-1]
    if last.value is None:
        return f"{last.flag.option} takes no value, got {shown(word)}; give it alone, or leave it out"
    more = sum(1 for _ in takewhile(lambda entry: not _is_flag(entry), pending))
    others = f" and {more} more" if more else ""
    return (
        f"unexpected {shown(word)}{others} after the value of {last.flag.option}; it takes one: put a pattern, or a value "
        "with spaces, in quotes"
    )


def _refuse_repeated(taken: Iterable[Typed]) -> None:
    earlier: dict[str, str | None] = {}
    for entry in taken:
        name = entry.flag.dest
        if entry.flag.place and earlier.setdefault(name, entry.value) != entry.value:
            raise ConfigError(
                f"{entry.flag.option} is given twice; give one value that covers both, such as a folder or a pattern, or "
                "start ovss twice"
            )


def shown(value: object, quoted: bool = True) -> str:
    """Return a value as messages show it: one line, not long, and an address without its secrets."""
    text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)
    text = _ADDRESS.sub(r"\1\2", " ".join(text.split()))
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return repr(text) if quoted and isinstance(value, str) else text


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-" and " " not in word and not re.fullmatch(r"-\.?\d.*", word)


def _spelling(name: str) -> str:
    return name.replace("_", "-")
