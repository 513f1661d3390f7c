"""``ovss benchmark``: measure speed against plain open_clip, the papers' loops and the Ray job."""

from dataclasses import replace
from pathlib import Path

from jobs.arguments import RUN, START, make_parser
from jobs.flags import Flag, flags_of
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from ovss_core.config import ModelConfig, Precision
from pipelines.benchmark.options import BenchmarkConfig

_MODEL = {
    "name": Flag("model", str, "Architecture that is measured; OpenAI's weights go with QuickGELU.", START),
    "pretrained": Flag("pretrained", str, "Weights; random ones cost the same.", START),
    "precision": Flag("precision", Precision, "Number format of the image tower.", RUN),
}


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    measured = BenchmarkConfig().model
    model = [replace(flag, default=getattr(measured, field)) for field, flag in _MODEL.items()]
    return make_parser(
        "benchmark",
        "[flags]",
        "Measure speed: medians and paired ratios of one run.\n\n"
        "  ovss benchmark --quick\n"
        "  ovss benchmark --output out/speed.json",
        [
            Flag("quick", bool, "One picture, once: shows that it runs.", START, False),
            Flag("output", Path | None, "JSON file for the result.", START, value="FILE"),
            *flags_of(BenchmarkConfig, RUN, skip=("model",)),
            *model,
        ],
        ("quick", "output", "images", "model", "pretrained"),
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Measure, print the tables, and return the exit status."""
    given = vars(build_parser().parse_args(arguments))
    quick, output, _ = given.pop("quick"), given.pop("output"), given.pop("config", None)
    model = ModelConfig(**{field: given.pop(flag.dest) for field, flag in _MODEL.items()})
    config = BenchmarkConfig(model=model, **given)
    if quick:
        config = replace(config, image_count=1, repeats=1, vocabularies=(21,), scaling=False, compiled=False)
    from pipelines.benchmark.report import as_markdown, measure  # brings torch, which help does not need

    print(as_markdown(measure(config, output)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
