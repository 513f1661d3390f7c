"""``ovss measure-demo``: measure the demonstration model on scenes it never saw."""

import sys

from jobs.arguments import RUN, START, make_parser
from jobs.flags import Flag
from jobs.parser import CommandParser
from jobs.reporting import Arguments, reported
from ovss_core.check import validate
from ovss_core.config import ModelConfig, SegmenterConfig
from ovss_core.errors import ConfigError
from ovss_core.head_names import clip_hosts


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    hosts = f"Dense heads, by commas, of {', '.join(clip_hosts())}."
    return make_parser(
        "measure-demo",
        "[flags]",
        "Measure the demonstration model on scenes it never saw.\n\n  ovss measure-demo --hosts clearclip,sfp --count 20",
        [
            Flag("hosts", str, hosts, START, "maskclip,clearclip,sfp"),
            Flag("count", int, "Number of scenes.", START, 300),
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
    model = ModelConfig(name="demo", pretrained=given.pretrained)
    for host in hosts:
        validate(SegmenterConfig(model, host))
    for name in ("count", "threads"):
        if given[name] is not None and given[name] < 1:
            raise ConfigError(f"--{name} is {given[name]}; give at least 1")
    import torch

    from pipelines.demonstration.measurement import as_table, measure_demo

    if given.threads:
        torch.set_num_threads(given.threads)
    cells = measure_demo(hosts, given.count, model, report=_progress)
    print(as_table(cells, given.count))
    return 0


def _progress(done: int) -> None:
    print(f"{done} scenes", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
