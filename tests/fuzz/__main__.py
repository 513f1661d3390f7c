"""The command: read damaged files for a while, and say which of them no reader may meet."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.campaign import Outcome, Report, build_case, fuzz, run_case
from tests.fuzz.targets import load_for_campaign


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 where something was found."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="How long to read damaged files.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the first case; they count up from it.")
    parser.add_argument("--cases", type=int, help="Stop after so many files, if the time is not up before.")
    parser.add_argument("--target", help="Read with this target only.")
    parser.add_argument(
        "--case",
        nargs=3,
        metavar=("TARGET", "SEED_FILE", "SEED"),
        help="Read this one case again, in this process.",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="With --case: write the damaged file there."
    )
    given = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="ovss-fuzz-") as folder:
        if given.case:
            outcome = _again(Path(folder), given.case, given.keep)
            print(outcome)
            return int(outcome.fault is not None)
        load = partial(load_for_campaign, Path(folder))
        report = fuzz(load, given.seconds, given.seed, given.target, given.cases)
    print(as_text(report))
    return int(bool(report.findings))


def _again(folder: Path, case: Sequence[str], keep: Path | None) -> Outcome:
    name, seed_file, seed = case
    target = {target.name: target for target in load_for_campaign(folder)}[name]
    data = build_case(target, seed_file, int(seed))
    if keep:
        keep.write_bytes(data)
    return run_case(target, seed_file, data)


def as_text(report: Report) -> str:
    """Return a table of the cases, and the findings."""
    lines = [f"{'target':14}{'cases':>9}{'read':>9}{'refused':>9}{'found':>7}"]
    found = [case.target for case, _ in report.findings]
    for name, cases in sorted(report.cases.items()):
        read = cases - report.refused[name] - found.count(name)
        lines.append(f"{name:14}{cases:9,}{read:9,}{report.refused[name]:9,}{found.count(name):7}")
    lines += [
        f"python -m tests.fuzz --case {case.target} {case.seed_file} {case.seed}: {fault}"
        for case, fault in report.findings
    ]
    return "\n".join([*lines, f"{sum(report.cases.values()):,} cases, {len(found)} findings"])


if __name__ == "__main__":
    sys.exit(main())
