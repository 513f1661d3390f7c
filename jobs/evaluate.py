"""``ovss evaluate``: measure labels against reference masks."""

from jsonargparse import Namespace

from jobs.arguments import add_fields, add_segmenter, parse_with_protocol, take_fields, take_segmenter
from jobs.reporting import Arguments, make_parser, reported
from pipelines.evaluate import EvaluateJob, PairOptions, describe_result, run_evaluate
from pipelines.label import read_descriptions
from pipelines.options import PoolOptions, RunOptions


@reported
def main(arguments: Arguments = None) -> int:
    """Run the job and return the exit status."""
    parser = make_parser("evaluate", "Measure mIoU on a benchmark, or on your own images and masks.")
    add_fields(parser, PairOptions)
    parser.add_argument(
        "--descriptions", type=str, help="JSON file: sentences by class, for ambiguous regions."
    )
    add_fields(parser, RunOptions, skip=("output", "previews"))
    parser.add_argument("--output", type=str, help="Folder of the results; out/ and the settings by default.")
    add_segmenter(parser)
    add_fields(parser, PoolOptions)
    values, vocabulary = parse_with_protocol(parser, arguments)
    values.output = values.output or _default_output(values)
    job = EvaluateJob(
        take_fields(values, PairOptions),
        take_fields(values, RunOptions),
        vocabulary,
        take_segmenter(values),
        read_descriptions(values.descriptions),
        take_fields(values, PoolOptions),
    )
    return describe_result(job, run_evaluate(job))


def _default_output(values: Namespace) -> str:
    way = "grid" if values.grid else f"{values.host}-{values.purify}"
    return f"out/{values.benchmark or 'evaluation'}-{way}"


if __name__ == "__main__":
    raise SystemExit(main())
