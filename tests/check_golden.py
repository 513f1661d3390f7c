"""Compare the implementation with a folder of reference arrays: `python -m tests.check_golden [FOLDER]`.

FOLDER has the layout of tests/golden (its README explains every key), of any seed, pictures, thresholds and
host head. Prints the largest error of each stage beside its tolerance and exits with 1 if one is missed.
"""

import sys
from pathlib import Path

import torch

from tests.golden_encoder import FreeCPEncoder, check_encoder, check_heads, check_sfp, load_encoder
from tests.golden_freecp import check_freecp_stages
from tests.golden_preprocessing import check_preprocessing
from tests.golden_refiners import check_refiners, has_refiners
from tests.golden_report import Report
from tests.golden_sliding import check_sliding_window

GOLDEN = Path(__file__).parent / "golden"


@torch.inference_mode()
def check(folder: Path = GOLDEN) -> Report:
    """Check every array of `folder`."""
    report = Report()
    if has_refiners(folder):
        check_refiners(folder, report)
        return report
    encoder = load_encoder(folder)
    check_encoder(folder, encoder, report)
    check_heads(folder, encoder, report)
    check_sfp(folder, encoder, report)
    check_freecp_stages(folder, report, FreeCPEncoder(encoder))
    check_sliding_window(folder, encoder, report)
    check_preprocessing(folder, report)
    if has_refiners(folder / "refiners"):
        check_refiners(folder / "refiners", report)
    return report


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else GOLDEN
    missing = [name for name in ("tiny_vit.npz", "inputs.npz") if not (folder / name).is_file()]
    if missing and not has_refiners(folder):
        print(f"{folder} has no {missing[0]}; give a folder with the layout of {GOLDEN}", file=sys.stderr)
        return 2
    report = check(folder)
    print("\n".join(report.lines()))
    print(
        f"{len(report.rows)} checks, {len(report.missed)} missed, {len(report.skipped)} skipped with a reason"
    )
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
