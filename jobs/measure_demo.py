"""``ovss measure-demo``: how well the demonstration model labels held-out scenes, by host, method and vocabulary."""

import sys

import torch

from jobs.reporting import Arguments, make_parser, reported
from ovss_core.config import ModelConfig
from ovss_core.demonstration.measurement import as_table, measure_demo


@reported
def main(arguments: Arguments = None) -> int:
    """Measure, print the table, and return the exit status."""
    parser = make_parser("measure-demo", "Measure the demonstration model on scenes it never saw.")
    parser.add_argument("--hosts", type=str, default="maskclip,clearclip,sfp", help="Hosts, by commas.")
    parser.add_argument("--count", type=int, default=300, help="Number of scenes.")
    parser.add_argument("--pretrained", type=str, default="openai", help="Path of other demo weights.")
    parser.add_argument("--threads", type=int, help="Threads of torch.")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    model = ModelConfig(name="demo", pretrained=given.pretrained)
    cells = measure_demo(given.hosts.split(","), given.count, model, report=_progress)
    print(as_table(cells, given.count))
    return 0


def _progress(done: int) -> None:
    print(f"{done} scenes", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
