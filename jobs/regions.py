"""``ovss regions``: find the regions of images with a mask generator (SAM 2, EoMT), once for any vocabulary."""

from jobs.arguments import IMAGES, JOB_HOMES, START, make_parser, run_flags, take_fields
from jobs.flags import flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from ovss_core.config import GeneratorConfig
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from pipelines.sources.kinds import SOURCE_KINDS

_PLACES = [kind.names()[0] for kind in SOURCE_KINDS]
_HOMES = {name: IMAGES for kind in SOURCE_KINDS for name in kind.names()[1:]} | JOB_HOMES


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    return make_parser(
        "regions",
        "--images PATH --generator MODEL --output FOLDER [flags]",
        "Write a region map of every image, for the flag --region-maps of ovss label.\n\n"
        "  ovss regions --images photos/ --generator facebook/sam2.1-hiera-large --output out/regions\n\n"
        "The same command goes on where an earlier one stopped.",
        [
            *flags_of(SourceOptions, IMAGES, skip=("region_maps",)),
            *flags_of(GeneratorConfig, START),
            *run_flags(skip=("previews",)),
        ],
        (*_PLACES, "generator", "output"),
        _HOMES,
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Run the job and return the exit status."""
    values = build_parser().parse_args(arguments)
    source, run = take_fields(values, SourceOptions), take_fields(values, RunOptions)
    pools, config = take_fields(values, PoolOptions), take_fields(values, GeneratorConfig)
    # imported here: help and what cannot work do not wait for torch and Ray
    from pipelines.regions.checks import check_regions
    from pipelines.run.events import choose_display

    choose_display(run)
    check_regions(source, run, pools)
    from pipelines.regions.job import MAPS, run_regions

    summary = run_regions(source, run, pools, config)
    found = summary["statistics"]["regions"]
    print(
        f"{summary['images']:,} images: {summary['labelled']:,} with a map, {summary['failed']:,} failed; {found:,} regions"
    )
    print(f"give them as --region-maps {run.output.rstrip('/')}/{MAPS}")
    return 0 if summary["labelled"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
