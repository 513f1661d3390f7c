"""``ovss verify``: check that an output holds what it says."""

from jobs.reporting import FAILED, Arguments, make_parser, reported
from pipelines.storage import Folder
from pipelines.verify import verify_output


@reported
def main(arguments: Arguments = None) -> int:
    """Check the output, print what was found, and return 0 if it is whole, 1 if not."""
    parser = make_parser(
        "verify",
        "Check that an output is whole: that every finished part has its files, and that they open and hold the rows "
        "that were counted. Nothing is changed; the command that made the output redoes what is damaged.",
    )
    parser.add_argument("output", type=str, help="Folder of the results; local path or URI.")
    parser.add_argument(
        "--content", action="store_true", help="Read every file whole, instead of sizes and footers."
    )
    given = parser.parse_args(arguments)
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
