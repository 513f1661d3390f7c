"""``ovss brightness``: measure how bright images are."""

from jobs.arguments import IMAGES, make_parser, run_flags, take_fields
from jobs.flags import flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    flags = [*flags_of(SourceOptions, IMAGES), *run_flags(skip=("previews",))]
    return make_parser("brightness", "--images PATH --output FOLDER", "Measure brightness.", flags)


@reported
def main(arguments: Arguments = None) -> int:
    """Run the job and return the exit status."""
    values = build_parser().parse_args(arguments)
    options = [take_fields(values, kind) for kind in (SourceOptions, RunOptions, PoolOptions)]
    from pipelines.brightness import run_brightness  # type: ignore

    summary = run_brightness(*options)
    print(f"{summary['labelled']} of {summary['images']} images, in all {summary['statistics']['sum']:.1f}")
    return 0
