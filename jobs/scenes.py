"""``ovss scenes``: paint synthetic scenes with exact labels."""

from jobs.arguments import RUN, make_parser, take_fields
from jobs.flags import flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from pipelines.demonstration.options import ScenesConfig


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    return make_parser(
        "scenes",
        "--count N --output FOLDER [flags]",
        "Draw picture-book scenes with exact label maps.\n\n"
        "  ovss scenes --count 1000 --format webdataset --output out/scenes\n\n"
        "The same command goes on where an earlier one stopped.",
        flags_of(ScenesConfig, RUN),
        ("count", "output", "format"),
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Draw the scenes and return the exit status."""
    config = take_fields(build_parser().parse_args(arguments), ScenesConfig)
    from pipelines.demonstration.drawing import (
        draw_scenes,  # brings Arrow and the painter, which help does not need
    )

    print(f"drew {draw_scenes(config)} scenes into {config.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
