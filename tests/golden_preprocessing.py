"""Checks resizing and normalizing against the reference arrays, for whatever photographs they come from."""

import hashlib
from pathlib import Path

import numpy as np

from ovss_core.images.resize import normalize, resize_image, resized_size
from tests.golden_encoder import load_arrays
from tests.golden_report import Report

NEEDS_PHOTO = "needs the whole photograph, which is not stored"
LONG_SIDE = 2048


def check_preprocessing(folder: Path, report: Report) -> None:
    """Check every key of ``preprocessing.npz``; keys that need the whole photographs are skipped."""
    arrays = load_arrays(folder / "preprocessing.npz")
    for key, expected in arrays.items():
        label = f"preprocessing/{key}"
        owner, _, name = key.rpartition("/")
        if name.startswith("source_patch_S"):
            source = arrays[f"{owner}/source_patch_bgr_u8"]
            report.equal(label, _resized(source, int(name.removeprefix("source_patch_S"))), expected)
        elif name.endswith("_shape") and f"{owner}/source_bgr_u8" in arrays:
            source = arrays[f"{owner}/source_bgr_u8"]
            report.equal(label, _resized(source, _side(name)).shape, expected)
        elif name.endswith("_sha256") and f"{owner}/source_bgr_u8" in arrays:
            source = arrays[f"{owner}/source_bgr_u8"]
            digest = hashlib.sha256(_resized(source, _side(name)).tobytes()).hexdigest()
            report.equal(label, digest, expected)
        elif name == "shape":
            photo, short = owner.split("/")
            original = arrays[f"{photo}/decoded_shape"]
            size = resized_size((int(original[0]), int(original[1])), int(short[1:]), LONG_SIDE)
            report.equal(label, (*size, 3), expected)
        elif name == "normalised_crop_rgb_f32":
            crop = next(value for other, value in arrays.items() if other.startswith(f"{owner}/crop_"))
            report.close(label, normalize(crop[..., ::-1]), expected, 0.0)
        elif name.startswith("source_") or name == "photo_id":
            report.skip(label, "is an input of other keys")
        else:
            report.skip(label, NEEDS_PHOTO)


def _side(name: str) -> int:
    return int(name.split("_")[0].removeprefix("S"))


def _resized(source: np.ndarray, short_side: int) -> np.ndarray:
    """Resize by the keep-ratio rule."""
    return resize_image(source, short_side, LONG_SIDE)
