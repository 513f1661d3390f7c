"""``ovss``: one command for all jobs; a job's module is imported when it is called."""

import sys
from collections.abc import Sequence
from importlib import import_module

from jobs.near_names import did_you_mean

COMMANDS = {
    "label": ("jobs.label", "label every image of a corpus"),
    "evaluate": ("jobs.evaluate", "measure mIoU on a benchmark or on your own masks"),
    "select": ("jobs.select", "choose what to train on, of labels that are there"),
    "export": ("jobs.export", "write labels for a trainer or an annotation tool"),
    "verify": ("jobs.verify", "check that an output is whole"),
    "scenes": ("jobs.scenes", "paint synthetic scenes with exact labels"),
    "train-demo": ("jobs.train_demo", "train the small model that ships with ovss"),
    "benchmark": ("jobs.benchmark", "measure speed against plain open_clip"),
    "measure-demo": ("jobs.measure_demo", "measure the demonstration model on scenes it never saw"),
}
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
