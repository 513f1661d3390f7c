"""``ovss table``: join finished evaluations into one table of systems by data sets."""

import sys
from pathlib import Path

from jobs.arguments import START, make_parser
from jobs.flags import Flag, choice
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from ovss_core.errors import ConfigError


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    return make_parser(
        "table",
        "FOLDER... [flags]",
        "Join finished evaluations, single ones and grids, into the papers' layout.\n\n"
        "  ovss table out/*\n"
        "  ovss table out/* --format latex --published --output table.tex",
        [
            Flag(
                "folders",
                list[str],
                "Outputs of ovss evaluate; others are passed over.",
                START,
                [],
                bare=True,
            ),
            Flag(
                "format", choice(("markdown", "csv", "latex")), "How the table is written.", START, "markdown"
            ),
            Flag(
                "figure",
                choice(("miou", "boundary_miou", "pixel_accuracy")),
                "What its cells hold, in percent.",
                START,
                "miou",
            ),
            Flag("published", bool, "Add each system's published figures below it.", START, False),
            Flag("output", str | None, "File for the table; unset prints it.", START, value="FILE"),
        ],
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Write the table and return the exit status."""
    given = build_parser().parse_args(arguments)
    if not given.folders:
        raise ConfigError("give the folders of finished evaluations, such as ovss table out/*")
    # imported here: help and wrong flags do not wait for Arrow
    from pipelines.evaluate.joined import join, read_evaluations, write_table

    figures, without = read_evaluations(given.folders, given.figure)
    if not figures:
        raise ConfigError(f"no finished evaluation in {', '.join(without)}; give outputs of ovss evaluate")
    if without:
        print(
            f"ovss: passed over, as they hold no finished evaluation: {', '.join(without)}", file=sys.stderr
        )
    text = write_table(join(figures, given.published), given.format)
    if given.output is None:
        print(text, end="")
        return 0
    try:
        Path(given.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {given.output}: {error.strerror}; give another --output") from error
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
