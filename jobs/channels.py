"""``ovss channels``: find the channels of an image tower that dominate patches, which ``--host rfclip`` needs to know."""

import sys
from dataclasses import fields

from jobs.arguments import IMAGES, QUALITY, START, make_parser, take_fields
from jobs.flags import flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from ovss_core.check import validate
from ovss_core.config import ModelConfig, SegmenterConfig
from pipelines.channel_options import ChannelOptions
from pipelines.run.options import SourceOptions

_START = ("images", "model", "pretrained", "count")


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    names = {entry.name: "model" if entry.name == "name" else entry.name for entry in fields(ModelConfig)}
    return make_parser(
        "channels",
        "--images PATH [flags]",
        "Find the over-activated channels of an image tower on any images, and their share.\n\n"
        "  ovss channels --images photos/ --model ViT-B-16 --pretrained laion2b_s34b_b88k",
        [
            *flags_of(SourceOptions, IMAGES),
            *flags_of(ModelConfig, QUALITY, names=names),
            *flags_of(ChannelOptions, START),
        ],
        _START,
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Measure, print the table, and return the exit status."""
    given = build_parser().parse_args(arguments)
    source, options = take_fields(given, SourceOptions), take_fields(given, ChannelOptions)
    model = ModelConfig(given.model, given.pretrained, given.precision, given.quick_gelu)
    validate(SegmenterConfig(model, "clip"))
    # imported here: help and wrong flags do not wait for torch
    from pipelines.channels import measure_channels

    counts = measure_channels(source, model, options, report=_progress)
    print("\n".join(counts.lines()))
    return 0


def _progress(done: int) -> None:
    if done % 10 == 0:
        print(f"{done} images", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
