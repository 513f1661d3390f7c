"""``ovss measure-demo``: measure the demonstration model on scenes it never saw."""

import sys

from jobs.arguments import RUN, START, make_parser
from jobs.flags import Flag
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from ovss_core.check import validate
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig, Thresholds, WindowConfig
from ovss_core.errors import ConfigError
from ovss_core.head_names import clip_hosts
from pipelines.demonstration.options import (
    HELD_OUT_SEED,
    MEASURED_METHODS,
    MEASURED_VOCABULARIES,
    MeasureOptions,
)

_METHODS = f"Labelling without FreeCP and by its forms, by commas, of {', '.join(MEASURED_METHODS)}."
_VOCABULARIES = (
    f"Words that a scene is offered, by commas, of {', '.join(MEASURED_VOCABULARIES)}: its own, the 44 of all scenes, and "
    "these with 44 for what is never drawn, 100 of ade20k, or 1,000 of CLIP's tokenizer."
)


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    hosts = f"Dense heads, by commas, of {', '.join(clip_hosts())}."
    usual, windows = MeasureOptions(), WindowConfig()
    return make_parser(
        "measure-demo",
        "[flags]",
        "Measure the demonstration model on scenes it never saw.\n\n  ovss measure-demo --hosts clearclip,sfp --count 20",
        [
            Flag("hosts", str, hosts, START, "maskclip,clearclip,sfp"),
            Flag("methods", str, _METHODS, START, ",".join(usual.methods)),
            Flag("vocabularies", str, _VOCABULARIES, START, ",".join(usual.vocabularies)),
            Flag("count", int, "Number of scenes.", START, 300),
            Flag("first_seed", int, "Seed of the first scene.", START, HELD_OUT_SEED),
            Flag("thresholds", Thresholds, "As --purification.thresholds of ovss label.", START, "published"),
            Flag(
                "redundancy_threshold", float | None, "As --purification.redundancy_threshold there.", START
            ),
            Flag("size", int, "Side of a window.", START, windows.size),
            Flag("short_side", int, "Short side of a scene after resizing.", START, windows.short_side),
            Flag(
                "pretrained",
                str,
                "The path of other weights than those that ship with ovss.",
                START,
                "openai",
            ),
            Flag("threads", int | None, "Threads of torch; unset leaves torch's choice.", RUN),
        ],
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Measure, print the table, and return the exit status."""
    given = build_parser().parse_args(arguments)
    hosts = [name.strip() for name in given.hosts.split(",")]
    methods, vocabularies = (
        tuple(name.strip() for name in text.split(",")) for text in (given.methods, given.vocabularies)
    )
    options = MeasureOptions(
        methods,
        vocabularies,
        WindowConfig(size=given.size, short_side=given.short_side),
        PurificationConfig(thresholds=given.thresholds, redundancy_threshold=given.redundancy_threshold),
    )
    model = ModelConfig(name="demo", pretrained=given.pretrained)
    for host in hosts:
        validate(SegmenterConfig(model, host, windows=options.windows))
    for name, least in (("count", 1), ("threads", 1), ("first_seed", HELD_OUT_SEED)):
        if given[name] is not None and given[name] < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {given[name]}; give at least {least}")
    import torch

    from pipelines.demonstration.measurement import as_table, measure_demo

    if given.threads:
        torch.set_num_threads(given.threads)
    cells = measure_demo(hosts, given.count, model, given.first_seed, _progress, options)
    print(as_table(cells, given.count))
    return 0


def _progress(done: int) -> None:
    print(f"{done} scenes", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
