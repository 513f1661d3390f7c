"""What a glob spells out by number or by name, so that a file that is not there is noticed."""

import re
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

from ovss_core.errors import ConfigError

MOST_NAMES = 10_000_000
_TOKEN = re.compile(
    r"(?P<range>\{(\d+)\.\.(\d+)\})|(?P<options>(?P<dot>(?<=\.))?\{(?P<names>[^{}]*,[^{}]*)\})"
    r"|(?P<folders>\*\*/)|(?P<all>\*\*)|(?P<some>\*)|(?P<one>\?)|(?P<kind>\[!?\]?[^\]/]*\])|(?P<plain>.)",
    re.DOTALL,
)


class Promises:
    """The files that a relative glob promises.

    Every number of ``{000..127}`` and every name of ``{train,val}`` is a promise; the options of a list behind a
    dot, as in ``.{tar,tgz}``, or with an empty one are alternatives. Braces within braces promise nothing.

    Args:
        pattern: The glob, ``**`` and wildcards included, relative to a folder.
    """

    def __init__(self, pattern: str) -> None:
        self._template: list[str | Sequence[str]] = []
        expression = ""
        nested = re.search(r"\{[^{}]*\{", pattern)
        for token in _TOKEN.finditer("" if nested else pattern):
            values = _promised_values(token)
            self._template.append(token.group() if values is None else values)
            expression += _expression(token)
        self._expression = re.compile(expression)
        self._values = [piece for piece in self._template if not isinstance(piece, str)]

    def missing(self, names: Sequence[str]) -> Iterator[str]:
        """Yield what is promised and not among the names; where a wildcard is left, as a glob."""
        if not self._values:
            return
        found = {match.groups() for name in names if (match := self._expression.fullmatch(name))}
        for values in product(*self._values):
            if values not in found:
                chosen = iter(values)
                yield "".join(piece if isinstance(piece, str) else next(chosen) for piece in self._template)


def check_count(pattern: str) -> None:
    """Refuse a glob whose ranges spell out more names than there can be.

    Raises:
        ConfigError: They are more than `MOST_NAMES`.
    """
    ranges = re.findall(r"\{(\d{1,18})\.\.(\d+)\}", pattern)
    count = prod(max(0, int(last[:18]) - int(first) + 1) for first, last in ranges)
    if count > MOST_NAMES:
        raise ConfigError(f"the ranges in {pattern!r} spell out {count:,} names; give at most {MOST_NAMES:,}")


def _promised_values(token: re.Match[str]) -> Sequence[str] | None:
    if token["range"]:
        first, last = token.group(2), token.group(3)
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    if token["options"] and token["dot"] is None and all(names := token["names"].split(",")):
        return names
    return None


def _expression(token: re.Match[str]) -> str:
    if token["range"]:
        return r"(\d+)"
    if token["options"]:
        options = "|".join(_expression_of_glob(name) for name in token["names"].split(","))
        return f"(?:{options})" if _promised_values(token) is None else f"({options})"
    if token["kind"]:
        inside = token["kind"][1:-1].replace("\\", "\\\\")
        return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
    wild = {"folders": r"(?:.*/)?", "all": ".*", "some": "[^/]*", "one": "[^/]"}
    return wild.get(token.lastgroup or "", re.escape(token.group()))


def _expression_of_glob(glob: str) -> str:
    return "".join(_expression(token) for token in _TOKEN.finditer(glob))
