"""``ovss report``: one page that shows whether labels are any good."""

from jobs.arguments import START, make_parser
from jobs.flags import Flag
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from ovss_core.errors import ConfigError


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    return make_parser(
        "report",
        "FOLDER [flags]",
        "Write FOLDER/_report/index.html, one page that needs no network: counts, failures, classes and which come\n"
        "together, how sure labels are, words kept and removed, and the images that are worth a look.\n\n"
        "  ovss report out/photos",
        [
            Flag(
                "output",
                str,
                "Folder of labels: the --output of ovss label or ovss select.",
                START,
                required=True,
                bare=True,
            ),
            Flag("images", int, "Images of each gallery, at most.", START, 8),
            Flag("rows", int, "Read about so many rows; all counts come from every row's.", START, 20_000),
        ],
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Write the page, say where it is, and return the exit status."""
    given = build_parser().parse_args(arguments)
    if given.images < 0 or given.rows < 1:
        raise ConfigError(f"images is {given.images} and rows {given.rows}; give at least 0 and 1")
    # imported here: help and wrong flags do not wait for Arrow
    from pipelines.label.report.page import PAGE, write_report
    from pipelines.storage import Folder

    output = Folder(given.output)
    found = write_report(output, given.images, given.rows)
    print(
        f"report on {found['rows']:,} labelled images, {found['read']:,} of them read, {found['pictures']} shown"
    )
    print(f"report: {output.public_uri}/{PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
