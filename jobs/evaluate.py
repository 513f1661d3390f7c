"""``ovss evaluate``: measure mIoU on a benchmark or on your own masks."""

import sys
from dataclasses import replace

from jsonargparse import Namespace

from jobs import corrections
from jobs.arguments import (
    IMAGES,
    JOB_HOMES,
    START,
    benchmark_flag,
    descriptions_flag,
    make_parser,
    parse_with_protocol,
    run_flags,
    say_recommended,
    segmenter_flags,
    take_fields,
    take_segmenter,
    vocabulary_flag,
)
from jobs.flags import flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from pipelines.evaluate.options import PairOptions
from pipelines.run.options import PoolOptions, RunOptions

_START = (
    "benchmark",
    "root",
    "images",
    "masks",
    "vocabulary",
    "output",
    "model",
    "pretrained",
    "grid",
    "limit",
    "oracle",
)


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    pairs = {flag.dest: flag for flag in flags_of(PairOptions, IMAGES)}
    pairs["benchmark"] = benchmark_flag(
        "One of the papers' benchmarks; its vocabulary and constants take the place of the defaults.", START
    )
    pairs["grid"] = replace(pairs["grid"], value="[systems|papers|ablations|towers]", alone="true")
    pairs["vocabulary"] = vocabulary_flag(" Its order is that of the masks' values.")
    output = "Folder for everything the run writes; out/ and the settings, unless given. A run that was interrupted goes on."
    run = [
        replace(flag, hint=str | None, required=False, meaning=output) if flag.dest == "output" else flag
        for flag in run_flags(skip=("previews", "report"))
    ]
    return make_parser(
        "evaluate",
        "--benchmark NAME --root FOLDER | --images PATH --masks FOLDER --vocabulary WORDS [flags]",
        "Measure mIoU on a benchmark, or on your own images and masks.\n\n"
        "  ovss evaluate --benchmark voc21 --root VOCdevkit/VOC2012\n"
        "  ovss evaluate --images images/ --masks masks/ --vocabulary words.txt --output out/mine\n"
        "  ovss evaluate --labels out/photos --masks corrected/  (what people changed in labels)",
        [*pairs.values(), *run, descriptions_flag(), *segmenter_flags()],
        _START,
        JOB_HOMES,
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Run the job and return the exit status."""
    given = [str(text) for text in (sys.argv[1:] if arguments is None else arguments)]
    if any(text.partition("=")[0] == "--labels" for text in given):
        status: int = corrections.main(given)
        return status
    values, vocabulary = parse_with_protocol(build_parser(), arguments)
    values.output = values.output or _default_output(values)
    pairs, run = take_fields(values, PairOptions), take_fields(values, RunOptions)
    segmenter, pools = take_segmenter(values), take_fields(values, PoolOptions)
    # imported here: help does not wait for Arrow, and settings that cannot work not for torch and Ray
    from pipelines.evaluate.checks import check_evaluate
    from pipelines.preflight import fetch_weights, read_descriptions
    from pipelines.run.events import choose_display
    from pipelines.run.progress import announced

    choose_display(run)
    segmenter = fetch_weights(segmenter)
    descriptions = read_descriptions(values.descriptions)
    check_evaluate(pairs, run, pools, segmenter, vocabulary, descriptions)
    pairs.open(vocabulary)  # says at once where nothing is there
    say_recommended(values)
    with announced("loading torch and Ray"):
        from pipelines.evaluate.job import EvaluateJob, describe_result, run_evaluate

    job = EvaluateJob(pairs, run, vocabulary, segmenter, descriptions, pools)
    return describe_result(job, run_evaluate(job))


def _default_output(values: Namespace) -> str:
    refined = "" if values.refine == "none" else f"-{values.refine}"
    way = f"{values.host.replace(' ', '').replace(',', '+')}-{values.purify}{refined}"
    if values.grid:
        way = "grid" if values.grid is True else values.grid
    return f"out/{values.benchmark or 'evaluation'}-{way}"


if __name__ == "__main__":
    raise SystemExit(main())
