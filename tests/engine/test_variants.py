"""Variants that share work give what each engine gives alone."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ovss_core.clip.weights import ClipModel
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig, SfpConfig, WindowConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.variants import VariantEngines
from ovss_core.errors import ConfigError
from tests.tiny import random_picture, tiny_clip, tiny_config, tiny_text

LINES = ["background: sky", "cat", "dog, puppy", "grass", "sofa"]
NONE = PurificationConfig(method="none", crop_size=16)
RELEASED = PurificationConfig(
    variant="released", thresholds="fixed", redundancy_threshold=0.01, ambiguity_threshold=0.3, crop_size=16
)


def _configs() -> list[SegmenterConfig]:
    plain = [tiny_config(host, NONE) for host in ("clearclip", "sfp", "gem")]
    purified = [tiny_config(host, RELEASED) for host in ("sfp", "naclip")]
    paper = replace(tiny_config("sfp", NONE), sfp=SfpConfig("paper"))
    wide = replace(tiny_config("sclip", NONE), windows=WindowConfig(48, 16, 48, 160))
    return [*plain, *purified, tiny_config("sfp"), paper, wide]


def _engines(clip: ClipModel) -> list[SegmentationEngine]:
    text = tiny_text(LINES)
    return [SegmentationEngine(config, clip, text) for config in _configs()]


def test_every_variant_labels_as_its_engine_does_alone() -> None:
    engines = _engines(tiny_clip())
    images = [random_picture(60, 80, 1), random_picture(50, 50, 2), random_picture(20, 140, 3)]

    together = VariantEngines(engines).segment(images)

    for engine, shared in zip(engines, together, strict=True):
        for one, other in zip(engine.segment(images), shared, strict=True):
            assert (one.label_map != other.label_map).mean() < 1e-3
            assert [entry.index for entry in one.kept] == [entry.index for entry in other.kept]


def test_an_image_taken_out_of_its_group_is_labelled_as_within_it() -> None:
    engine = _engines(tiny_clip())[3]
    images = [random_picture(60, 80, 1), random_picture(50, 50, 2)]

    [groups] = VariantEngines([engine]).encode(images)

    for group in groups:
        for position, within in enumerate(group.segment(engine)):
            [alone] = group.single(position, engine).segment(engine)
            assert (alone.label_map != within.label_map).mean() < 1e-3


def test_heads_that_read_the_same_blocks_share_one_pass_through_the_tower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = _engines(tiny_clip())
    first = engines[0].encoder
    passes = 0
    trace = type(first).trace

    def counted(*arguments: object) -> object:
        nonlocal passes
        passes += 1
        return trace(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(first), "trace", counted)

    VariantEngines(engines).encode([random_picture(32, 32)])

    # of eight engines: a trunk that five share, the one of GEM, that of the paper variant, and that of wider windows
    assert passes == 4


def test_engines_of_equal_heads_get_the_same_features() -> None:
    engines = [_engines(tiny_clip())[index] for index in (3, 5)]

    first, second = VariantEngines(engines).encode([random_picture(40, 60)])

    assert first[0].encoded.features is second[0].encoded.features
    assert all(a is b for a, b in pairwise([first[0].encoded.attention, second[0].encoded.attention]))


def test_variants_of_two_models_are_refused() -> None:
    engines = _engines(tiny_clip())
    engines[1].config = replace(engines[1].config, model=ModelConfig("another"))

    with pytest.raises(ConfigError, match="share one model"):
        VariantEngines(engines)


def test_an_engine_with_another_vocabulary_leaves_the_first_one_as_it_was() -> None:
    engine = _engines(tiny_clip())[3]
    image = random_picture(40, 60)
    before = engine.segment([image])[0].label_map

    other = engine.with_vocabulary(tiny_text(LINES[:2]), engine.config)

    assert set(np.unique(other.segment([image])[0].label_map)) <= {0, 1}
    assert np.array_equal(engine.segment([image])[0].label_map, before)
