"""``ovss measure``: how fast labelling is beside plain open_clip, the papers' loops and the Ray job."""

from dataclasses import replace
from pathlib import Path

from jobs.reporting import Arguments, make_parser, reported
from ovss_core.config import ModelConfig
from pipelines.measurement.report import as_markdown, measure, write_json
from pipelines.measurement.workload import MeasureConfig


@reported
def main(arguments: Arguments = None) -> int:
    """Measure, print the tables, and return the exit status."""
    parser = make_parser("measure", "Measure speed: medians and paired ratios of one run.")
    parser.add_argument("--images", type=str, help="Folder of photographs; drawn scenes without it.")
    parser.add_argument("--image-count", type=int, default=4, help="Pictures of the engine's tables.")
    parser.add_argument("--repeats", type=int, default=3, help="Turns of each candidate.")
    parser.add_argument("--model", type=str, default="ViT-B-16", help="Architecture that is measured.")
    parser.add_argument("--pretrained", type=str, default="random", help="Random weights cost the same.")
    parser.add_argument("--precision", type=str, default="float32", help="float32, bfloat16 or float16.")
    parser.add_argument("--device", type=str, help="Where to compute; a GPU where there is one.")
    parser.add_argument("--threads", type=int, help="Threads of torch.")
    parser.add_argument("--window-batch", type=int, default=32, help="Windows encoded at once.")
    parser.add_argument(
        "--ray-images", type=int, default=500, help="Pictures of the Ray comparison; 0: none."
    )
    parser.add_argument("--ray-model", type=str, default="demo", help="Model of the Ray comparison.")
    parser.add_argument("--quick", action="store_true", help="A few pictures, once: shows that it runs.")
    parser.add_argument("--output", type=str, help="JSON file for the result.")
    given = vars(parser.parse_args(arguments))
    quick, output, images = given.pop("quick"), given.pop("output"), given.pop("images")
    given.pop("config", None)
    model = ModelConfig(given.pop("model"), given.pop("pretrained"), given.pop("precision"))
    config = MeasureConfig(images=Path(images) if images else None, model=model, **given)
    if quick:
        config = replace(config, image_count=1, repeats=1, vocabularies=(21,), scaling=False)
    result = measure(config)
    print(as_markdown(result))
    if output:
        write_json(result, Path(output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
