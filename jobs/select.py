"""``ovss select``: choose what to train on, of labels that are there."""

from dataclasses import replace

from jobs.arguments import labels_flag, make_parser, take_fields
from jobs.flags import flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from ovss_core.vocabulary_files import split_words
from pipelines.derive.options import DeriveOptions, SelectOptions

_LISTS = ("words", "without")
_HOW, _RUN = "what is selected", "the run"


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    chosen = [
        replace(flag, hint=str | None, default=None, value="WORDS") if flag.dest in _LISTS else flag
        for flag in flags_of(SelectOptions, _HOW)
    ]
    return make_parser(
        "select",
        "--labels FOLDER --output FOLDER [flags]",
        "Choose what to train on, of labels that are there: pixels that are sure enough, and images by words,\n"
        "confidence and chance. Nothing is labelled anew; the selection is an output like that of ovss label.\n\n"
        "  ovss select --labels out/photos --min-confidence 0.2 --words cat,dog --output out/sure",
        [
            labels_flag(),
            *flags_of(DeriveOptions, _RUN),
            *chosen,
        ],
        ("labels", "output"),
        {},
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Run the job and return the exit status."""
    values = build_parser().parse_args(arguments)
    for name in _LISTS:
        values[name] = tuple(split_words(values[name])) if values[name] else ()
    options, wanted = take_fields(values, DeriveOptions), take_fields(values, SelectOptions)
    # imported here: help and wrong flags do not wait for Arrow and Ray
    from pipelines.derive.selection import Selection
    from pipelines.derive.units import run_task
    from pipelines.run.events import choose_display
    from pipelines.storage import Folder

    choose_display(options)
    summary = run_task(values.labels, Selection(wanted), options)
    print(
        f"{summary['rows']:,} images: {summary['written']:,} selected, {summary['left_out']:,} left out, "
        f"{summary['failed']:,} failed"
    )
    print(f"labels: {Folder(options.output).public_uri}/labels")
    return 0 if summary["written"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
