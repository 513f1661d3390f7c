"""``ovss label``: label every image of a corpus."""

from jobs.arguments import (
    IMAGES,
    JOB_HOMES,
    QUALITY,
    RUN,
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
from jobs.flags import Flag, flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from pipelines.label.options import NO_VOCABULARY, OutputOptions, PartOptions, WordOptions
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from pipelines.sources.kinds import SOURCE_KINDS

_PLACES = [kind.names()[0] for kind in SOURCE_KINDS]
_START = (*_PLACES, "vocabulary", "output", "model", "pretrained", "previews")
_DRY_RUN = Flag(
    "dry_run",
    bool,
    "List the corpus, label a sample of it on the cluster, and print what the run would cost; nothing is written.",
    RUN,
    False,
)
_HOMES = {name: IMAGES for kind in SOURCE_KINDS for name in kind.names()[1:]} | JOB_HOMES


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    return make_parser(
        "label",
        "--images PATH --vocabulary WORDS --output FOLDER [flags]",
        "Label every image of a corpus with the classes of a vocabulary.\n\n"
        "  ovss label --images photos/ --vocabulary cat,dog,sky --output out/photos\n\n"
        "The same command goes on where an earlier one stopped.",
        [
            *flags_of(SourceOptions, IMAGES),
            *flags_of(PartOptions, IMAGES),
            vocabulary_flag(),
            *run_flags(),
            benchmark_flag("Take the vocabulary and the constants of this benchmark.", QUALITY),
            descriptions_flag(),
            *flags_of(WordOptions, QUALITY),
            *flags_of(OutputOptions, RUN),
            _DRY_RUN,
            *segmenter_flags(),
        ],
        _START,
        _HOMES,
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Run the job and return the exit status."""
    values, vocabulary = parse_with_protocol(build_parser(), arguments, NO_VOCABULARY)
    words = take_fields(values, WordOptions)
    source, run = take_fields(values, SourceOptions), take_fields(values, RunOptions)
    segmenter, pools = take_segmenter(values), take_fields(values, PoolOptions)
    # imported here: help does not wait for Arrow, and settings that cannot work not for torch and Ray
    from pipelines.label.checks import check_label
    from pipelines.preflight import fetch_weights, read_descriptions
    from pipelines.run.events import choose_display
    from pipelines.run.progress import announced

    choose_display(run)
    segmenter = fetch_weights(segmenter)
    descriptions = read_descriptions(values.descriptions)
    check_label(source, run, pools, segmenter, vocabulary, descriptions, words)
    source.open()  # says at once where nothing is there
    say_recommended(values)
    with announced("loading torch and Ray"):
        from pipelines.label.job import LabelJob, describe_result, run_label

    job = LabelJob(
        source,
        run,
        vocabulary,
        segmenter,
        descriptions,
        pools,
        take_fields(values, OutputOptions),
        take_fields(values, PartOptions),
        words,
    )
    if values.dry_run:
        from pipelines.label.dry_run import forecast_label

        print("\n".join(forecast_label(job).lines()))
        return 0
    return describe_result(job, run_label(job))


if __name__ == "__main__":
    raise SystemExit(main())
