"""Label maps of the authors' own programs on the shipped weights, pixel by pixel (end_to_end/)."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ovss_core.api import OpenVocabSegmenter
from ovss_core.clip.demo import demo_weights_path
from ovss_core.config import LabelConfig, ModelConfig, PurificationConfig, SegmenterConfig, WindowConfig

FOLDER = Path(__file__).parent / "end_to_end"
IMAGES = ("scene_002", "crop_001")
HOSTS = ("sfp", "sclip", "clearclip", "maskclip", "naclip", "gem", "scclip")
SLOW_FREECP_HOSTS = ("sclip", "maskclip")
TIES = 2


def settings(host: str, freecp: bool) -> SegmenterConfig:
    model = ModelConfig("demo")
    if not freecp:
        return SegmenterConfig(
            model=model,
            host=host,
            windows=WindowConfig(size=224, stride=112, short_side=336),
            purification=PurificationConfig(method="none"),
            labels=LabelConfig(logit_scale=40.0),
        )
    return SegmenterConfig(
        model=model,
        host=host,
        windows=WindowConfig(size=384, stride=112, short_side=448),
        purification=PurificationConfig(
            variant="released",
            thresholds="fixed",
            redundancy_threshold=0.10,
            ambiguity_threshold=0.7,
            score_scale=100.0,
        ),
    )


def test_the_arrays_were_made_with_the_weights_that_ship() -> None:
    assert hashlib.sha256(demo_weights_path().read_bytes()).hexdigest().startswith("2e9e298f")


@pytest.mark.parametrize(
    ("host", "freecp"),
    [
        *((host, False) for host in HOSTS),
        ("clearclip", True),
        *(pytest.param(host, True, marks=pytest.mark.slow) for host in SLOW_FREECP_HOSTS),
    ],
)
def test_every_pixel_gets_the_label_of_the_authors_program(host: str, freecp: bool) -> None:
    segmenter = OpenVocabSegmenter.from_pretrained(
        "demo", vocabulary="demo", config=settings(host, freecp), descriptions=None, device="cpu"
    )
    run = f"freecp_{host}" if freecp else host
    with np.load(FOLDER / "labels.npz") as arrays:
        for name in IMAGES:
            result = segmenter.segment(FOLDER / f"{name}.webp")
            expected = arrays[f"{run}/{name}/labels"]
            near = np.unpackbits(arrays[f"{run}/{name}/near_tie"], count=expected.size).astype(bool)
            differs = result.label_map != expected
            assert not (differs & ~near.reshape(expected.shape)).any()
            assert differs.sum() <= TIES
