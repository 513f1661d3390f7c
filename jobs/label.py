"""``ovss label``: label every image of a corpus."""

from jobs.arguments import add_fields, add_segmenter, parse_with_protocol, take_fields, take_segmenter
from jobs.reporting import Arguments, make_parser, reported
from pipelines.options import PoolOptions, RunOptions, SourceOptions
from pipelines.preflight import check_label, read_descriptions


@reported
def main(arguments: Arguments = None) -> int:
    """Run the job and return the exit status."""
    parser = make_parser("label", "Label every image of a corpus with the classes of a vocabulary.")
    add_fields(parser, SourceOptions)
    parser.add_argument(
        "--vocabulary", type=str, help="Shipped name (such as voc21) or file, a class a line."
    )
    parser.add_argument(
        "--descriptions", type=str, help="JSON file: sentences by class, for ambiguous regions."
    )
    parser.add_argument("--benchmark", type=str, help="Take vocabulary and constants of this benchmark.")
    add_fields(parser, RunOptions)
    add_segmenter(parser)
    add_fields(parser, PoolOptions)
    values, vocabulary = parse_with_protocol(parser, arguments)
    source, run = take_fields(values, SourceOptions), take_fields(values, RunOptions)
    segmenter, pools = take_segmenter(values), take_fields(values, PoolOptions)
    descriptions = read_descriptions(values.descriptions)
    check_label(source, run, pools, segmenter, vocabulary, descriptions)
    source.open()  # says at once where nothing is there
    # imported here: help and wrong flags do not wait for torch and Ray
    from pipelines.label import LabelJob, describe_result, run_label

    job = LabelJob(source, run, vocabulary, segmenter, descriptions, pools)
    return describe_result(job, run_label(job))


if __name__ == "__main__":
    raise SystemExit(main())
