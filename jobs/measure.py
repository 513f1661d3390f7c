"""``ovss measure``: how fast labelling is beside plain open_clip, the papers' loops and the Ray job."""

from dataclasses import replace
from pathlib import Path

from jobs.arguments import add_fields
from jobs.reporting import Arguments, make_parser, reported
from ovss_core.config import ModelConfig
from pipelines.measurement.report import as_markdown, measure
from pipelines.measurement.workload import MeasureConfig


@reported
def main(arguments: Arguments = None) -> int:
    """Measure, print the tables, and return the exit status."""
    parser = make_parser("measure", "Measure speed: medians and paired ratios of one run.")
    add_fields(parser, MeasureConfig, skip=("model",))
    parser.add_argument(
        "--model",
        type=str,
        default="ViT-B-16-quickgelu",
        help="Architecture that is measured; OpenAI's weights go with QuickGELU.",
    )
    parser.add_argument("--pretrained", type=str, default="random", help="Random weights cost the same.")
    parser.add_argument("--precision", type=str, default="float32", help="float32, bfloat16 or float16.")
    parser.add_argument("--quick", action="store_true", help="One picture, once: shows that it runs.")
    parser.add_argument("--output", type=Path, help="JSON file for the result.")
    given = vars(parser.parse_args(arguments))
    quick, output, _ = given.pop("quick"), given.pop("output"), given.pop("config", None)
    model = ModelConfig(*(given.pop(name) for name in ("model", "pretrained", "precision")))
    config = MeasureConfig(model=model, **given)
    if quick:
        config = replace(config, image_count=1, repeats=1, vocabularies=(21,), scaling=False, compiled=False)
    print(as_markdown(measure(config, output)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
