"""``ovss systems``: list the systems of the papers' tables with what they need, what was published, and what is in."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from jobs.arguments import START, make_parser
from jobs.flags import Flag, choice
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from ovss_core.evaluation.benchmarks import ORDER, System, list_systems
from ovss_core.evaluation.benchmarks.systems import NEEDS


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    return make_parser(
        "systems",
        "[flags]",
        "List every system of the papers' tables, and the strongest since: published mIoU, needs, licenses, how to run\n"
        "those that are in, and why the others are not.\n\n"
        "  ovss systems\n"
        "  ovss evaluate --benchmark voc21 --root VOCdevkit/VOC2012 --grid systems",
        [Flag("format", choice(("markdown", "json")), "How the list is written.", START, "markdown")],
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Print the list and return the exit status."""
    given = build_parser().parse_args(arguments)
    systems = list_systems()
    print(as_json(systems) if given.format == "json" else as_markdown(systems))
    return 0


def as_markdown(systems: Sequence[System]) -> str:
    """Draw the systems as two tables, those that are in and the others, and where each figure comes from."""
    ours, others = ([system for system in systems if system.is_in is wanted] for wanted in (True, False))
    lines = [
        "Published mIoU in percent, ViT-B/16 with OpenAI's weights unless the source says otherwise.",
        "",
        "### In",
        "",
        *_table(ours, "run with", lambda system: f"`{system.flags}`"),
        "",
        "### Not in",
        "",
        *_table(others, "why", lambda system: system.reason),
        "",
        "### Sources and licenses",
        "",
    ]
    lines += [
        f"- {system.name}: {system.paper}. Figures: {system.source}. License: {system.license}."
        for system in systems
    ]
    return "\n".join(lines)


def as_json(systems: Sequence[System]) -> str:
    """Write the systems as JSON, with whether each is in and why not."""
    entries = [
        {**asdict(system), "mean": system.mean, "in": system.is_in, "reason": system.reason}
        for system in systems
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False)


def _table(systems: Sequence[System], last: str, told: Callable[[System], str]) -> Iterator[str]:
    heads = [*(name.replace("_", " ") for name in ORDER), "mean"]
    yield f"| system | {' | '.join(heads)} | needs | {last} |"
    yield f"|---{'|---:' * len(heads)}|---|---|"
    for system in systems:
        figures = [*(system.miou.get(name) for name in ORDER), system.mean]
        cells = ["-" if value is None else f"{value:.1f}" for value in figures]
        needs = ", ".join(NEEDS[need] for need in system.needs) or "-"
        yield f"| {system.name} | {' | '.join(cells)} | {needs} | {told(system)} |"


if __name__ == "__main__":
    raise SystemExit(main())
