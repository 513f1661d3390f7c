"""``ovss reproduce``: repeat both papers' tables on the data sets of a folder, and show the gaps."""

from dataclasses import replace

from jobs.arguments import (
    JOB_HOMES,
    RUN,
    descriptions_flag,
    make_parser,
    run_flags,
    segmenter_flags,
    take_fields,
)
from jobs.flags import Flag, flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from ovss_core.config import ModelConfig, SegmenterConfig
from pipelines.reproduce.options import ReproduceOptions
from pipelines.run.options import PoolOptions, RunOptions

_START = ("data", "output", "model", "pretrained", "tables", "limit", "tolerance")
_OF_SEGMENTER = ("model", "pretrained", "precision", "quick_gelu", "host", "window_batch", "max_pixels")
"""What of the segmenter the papers' protocols leave to choose."""


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    segmenter = [flag for flag in segmenter_flags() if flag.dest in _OF_SEGMENTER]
    flags = [*flags_of(ReproduceOptions, RUN), *run_flags(skip=("previews", "report")), *segmenter]
    return make_parser(
        "reproduce",
        "--data FOLDER [flags]",
        "Repeat both papers' main tables and ablations, each with its protocol's constants, on the data sets\n"
        "that lie in a folder, and write published figures, measured ones and gaps into one page and JSON.\n\n"
        "  ovss reproduce --data data/\n"
        "  ovss reproduce --data data/ --model demo --limit 2   (shows that everything runs; compares nothing)",
        [*map(_own, flags), descriptions_flag()],
        _START,
        JOB_HOMES,
    )


def _own(flag: Flag) -> Flag:
    """Give a shared flag this command's default and meaning."""
    if flag.dest == "data":
        return replace(flag, value="FOLDER", place=True)
    if flag.dest == "output":
        return replace(flag, required=False, default="out/reproduce")
    if flag.dest == "host":  # of those with published figures the best on VOC21
        return replace(flag, default="sclip", meaning="Dense head of FreeCP's ablations.")
    return flag


@reported
def main(arguments: Arguments = None) -> int:
    """Run the evaluations and return the exit status."""
    given = build_parser().parse_args(arguments)
    options, run = take_fields(given, ReproduceOptions), take_fields(given, RunOptions)
    pools = take_fields(given, PoolOptions)
    model = ModelConfig(given.model, given.pretrained, given.precision, given.quick_gelu)
    segmenter = SegmenterConfig(
        model, given.host, window_batch=given.window_batch, max_pixels=given.max_pixels
    )
    # imported here: help does not wait for Arrow, and settings that cannot work not for torch and Ray
    from ovss_core.check import validate
    from pipelines.preflight import check_run, fetch_weights, read_descriptions, require_apart
    from pipelines.reproduce.data_sets import find_data_sets
    from pipelines.run.events import choose_display
    from pipelines.run.progress import announced

    choose_display(run)
    segmenter = fetch_weights(segmenter)
    descriptions = read_descriptions(given.descriptions)
    validate(segmenter)
    check_run(run, pools, 0.0)
    require_apart({"--data": options.data}, run.output)
    data_sets = find_data_sets(options.data)  # says at once where nothing is there
    with announced("loading torch and Ray"):
        from pipelines.reproduce.job import ReproduceJob, describe_result, run_reproduce

    job = ReproduceJob(options, run, segmenter, descriptions, pools)
    return describe_result(job, run_reproduce(job, data_sets))


if __name__ == "__main__":
    raise SystemExit(main())
