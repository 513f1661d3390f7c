"""``ovss verify``: check that an output is whole."""

from jobs.arguments import START, make_parser
from jobs.flags import Flag
from jobs.parser import CommandParser
from jobs.reporting import FAILED, Arguments, reported


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    return make_parser(
        "verify",
        "FOLDER [flags]",
        "Check that an output is whole: that every finished part has its files, and that they open and hold\n"
        "the rows that were counted. Nothing is changed; the command that made the output redoes what is damaged.\n\n"
        "  ovss verify out/photos",
        [
            Flag("output", str, "Folder of the results; local path or URI.", START, required=True, bare=True),
            Flag("content", bool, "Read every file whole, instead of sizes and footers.", START, False),
        ],
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Check the output, print what was found, and return 0 if it is whole, 1 if not."""
    given = build_parser().parse_args(arguments)
    # imported here: help and wrong flags do not wait for Arrow
    from pipelines.run.verify import verify_output
    from pipelines.storage import Folder

    verdict = verify_output(Folder(given.output), given.content)
    for problem in verdict.problems:
        print(problem)
    print(
        f"{verdict.images:,} images in {verdict.parts:,} parts: {verdict.labelled:,} labelled, {verdict.failed:,} "
        f"failed; {f'{len(verdict.problems)} problems' if verdict.problems else 'everything is there'}"
    )
    return FAILED if verdict.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
