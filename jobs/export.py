"""``ovss export``: labels in the format that a trainer or an annotation tool reads."""

from jobs.arguments import labels_flag, make_parser, take_fields
from jobs.flags import flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from pipelines.derive.options import DeriveOptions, ExportOptions

_WHAT, _RUN = "what is written", "the run"


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    return make_parser(
        "export",
        "--labels FOLDER --format NAME --output FOLDER [flags]",
        "Write labels in the format that a trainer or an annotation tool reads.\n\n"
        "  ovss export --labels out/photos --format yolo-seg --val-share 0.1 --output out/yolo",
        [
            labels_flag("ovss label or ovss select"),
            *flags_of(ExportOptions, _WHAT),
            *flags_of(DeriveOptions, _RUN),
        ],
        ("labels", "format", "output"),
        {},
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Run the job and return the exit status."""
    values = build_parser().parse_args(arguments)
    options, wanted = take_fields(values, DeriveOptions), take_fields(values, ExportOptions)
    # imported here: help and wrong flags do not wait for Arrow and Ray
    from pipelines.derive.export import Export
    from pipelines.derive.units import run_task
    from pipelines.run.events import choose_display
    from pipelines.storage import Folder

    choose_display(options)
    summary = run_task(values.labels, Export(wanted), options)
    splits = ", ".join(
        f"{count:,} {split}" for split, count in summary["statistics"].get("splits", {}).items()
    )
    print(
        f"{summary['rows']:,} images: {summary['written']:,} written ({splits}), {summary['failed']:,} failed"
    )
    place = Folder(options.output).public_uri
    print(f"{wanted.format}: {place}")
    if summary["failed"]:
        print(f"why images failed: {place}/_failures")
    return 0 if summary["written"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
