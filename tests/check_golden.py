"""Compare the implementation with a folder of reference arrays: `python -m tests.check_golden [FOLDER [BASE]]`.

FOLDER has the layout of tests/golden or of tests/golden_backbone (their READMEs explain every key), of any seed,
pictures, thresholds and host head; or that of tests/golden/more, arrays of further hosts. Further hosts and second towers
stand on the CLIP tower and the pictures of a folder like tests/golden: BASE, FOLDER itself, or the one beside it whose name
lacks "_more" or "_backbone". Prints the largest error of each stage beside its tolerance and exits with 1 if one is missed.
"""

import sys
from pathlib import Path

import torch

from tests.golden_encoder import FreeCPEncoder, check_encoder, check_heads, check_sfp, load_encoder
from tests.golden_freecp import check_freecp_stages
from tests.golden_more import base_of, check_further, is_further
from tests.golden_preprocessing import check_preprocessing
from tests.golden_proxies import check_proxies
from tests.golden_refiners import check_refiners, has_refiners
from tests.golden_report import Report
from tests.golden_sliding import check_sliding_window

GOLDEN = Path(__file__).parent / "golden"
TOWERS = "tiny_dino.npz"
"""The file that only a folder with second towers has."""


@torch.inference_mode()
def check(folder: Path = GOLDEN, base: Path | None = None) -> Report:
    """Check every array of `folder`; those with a second tower stand on the CLIP tower and pictures of `base`."""
    report = Report()
    if is_further(folder):
        check_further(folder, report)
        if has_refiners(folder):
            check_refiners(folder, report)
        return report
    if (folder / TOWERS).is_file():
        check_proxies(folder, base or clip_folder_of(folder), report)
        return report
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
    if is_further(folder / "more"):
        check_further(folder / "more", report)
    if has_refiners(folder / "refiners"):
        check_refiners(folder / "refiners", report)
    return report


def clip_folder_of(folder: Path) -> Path:
    """Return the folder with the CLIP tower and the pictures that a folder with second towers was made with."""
    plain = folder.resolve().name.replace("_backbone", "").replace("backbone", "")
    beside = [folder, *(folder.resolve().parent / name for name in (plain, "golden") if name)]
    return next((place for place in beside if (place / "tiny_vit.npz").is_file()), GOLDEN)


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else GOLDEN
    second = (folder / TOWERS).is_file()
    if is_further(folder):
        base = base_of(folder)
        print(f"the tower, the windows and the phrases are those of {base}")
    else:
        base = Path(arguments[1]) if len(arguments) > 1 else clip_folder_of(folder) if second else folder
    needed = ("tiny_vit.npz", "inputs.npz", *(("sliding_window.npz",) if second else ()))
    missing = [name for name in needed if not (base / name).is_file()]
    if missing and not has_refiners(folder):
        print(f"{base} has no {missing[0]}; give a folder with the layout of {GOLDEN}", file=sys.stderr)
        return 2
    report = check(folder, base)
    if second:
        print(f"CLIP tower and pictures: {base}")
    print("\n".join(report.lines()))
    print(
        f"{len(report.rows)} checks, {len(report.missed)} missed, {len(report.skipped)} skipped with a reason"
    )
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
