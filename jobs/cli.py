"""One command, ``ovss``, for all jobs; a job's module is imported when it is called."""

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import jobs
from jobs.near_names import did_you_mean

_FIRST = ("label", "evaluate", "verify")
_TITLE = re.compile(r'"""``ovss (?P<name>[\w-]+)``: (?P<meaning>.+?)\.?(""")?$')


def _discover() -> dict[str, tuple[str, str]]:
    """Find the commands by the first line of each module's docstring, without importing them."""
    found = {}
    for path in (path for folder in jobs.__path__ for path in Path(folder).glob("*.py")):
        with path.open(encoding="utf-8") as source:
            title = _TITLE.match(source.readline().rstrip())
        if title:
            found[title["name"]] = (f"jobs.{path.stem}", title["meaning"])
    names = sorted(found, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    return {name: found[name] for name in names}


COMMANDS = _discover()
"""The module of each command, and what it does: every file of this folder that begins with its name, ``ovss label``."""
RENAMED = {"measure": "benchmark"}
"""Commands of the release before by their old names, which still work and are not listed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Call the job that the first argument names, with the others."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["help"]:
        given = [*given[1:2], "--help"]
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else 2
    if given[0] == "--version":
        from jobs.parser import versions

        print(versions())
        return 0
    if given[0] in RENAMED:
        name = RENAMED[given[0]]
        print(f"ovss: warning: ovss {given[0]} is called ovss {name} now; use that name", file=sys.stderr)
        given[0] = name
    if given[0] not in COMMANDS:
        print(f"ovss: error: {_unknown(given[0])}", file=sys.stderr)
        return 2
    status: int = import_module(COMMANDS[given[0]][0]).main(given[1:])
    return status


def usage() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<14}{meaning}" for name, (_, meaning) in COMMANDS.items()]
    return (
        "usage: ovss COMMAND [flags]\n\n"
        + "\n".join(lines)
        + "\n\nTo begin with:  ovss label --images photos/ --vocabulary cat,dog,sky --output out/photos\n"
        "ovss COMMAND --help lists a command's flags; ovss --version tells the versions."
    )


def _unknown(word: str) -> str:
    if word.startswith("-"):
        return f"give a command before {word.partition('=')[0]}, such as ovss label; the commands are {', '.join(COMMANDS)}"
    return f"unknown command {word!r}; give one of {', '.join(COMMANDS)}{did_you_mean(word, COMMANDS)}"


if __name__ == "__main__":
    raise SystemExit(main())
