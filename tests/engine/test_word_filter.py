"""What CaR's filter of words does beside the rest: switches, other settings on the same tower, refiners, scoring heads."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from ovss_core.api import encode_words
from ovss_core.check import validate
from ovss_core.clip.text import EncodedVocabulary
from ovss_core.config import CarConfig, CliptraseConfig, ModelConfig, PurificationConfig, SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.variants import VariantEngines
from ovss_core.errors import ConfigError
from ovss_core.evaluation.oracle import Oracle
from ovss_core.vocabulary import Vocabulary
from tests.tiny import WORDS, random_picture, tiny_clip, tiny_config

PICTURES = [random_picture(*size) for size in ((37, 80), (48, 60), (45, 33))]
GROUND = ["background: wall, floor", *WORDS]
CAR = PurificationConfig("car")


@cache
def _text(*lines: str) -> EncodedVocabulary:
    return encode_words(tiny_clip(lively=False), _config(), Vocabulary.from_names(list(lines)))


def _config(host: str = "sclip") -> SegmenterConfig:
    return replace(tiny_config(host, CAR), car=CarConfig(0.2, gain=40.0))


def _engine(lines: list[str], config: SegmenterConfig | None = None) -> SegmentationEngine:
    return SegmentationEngine(config or _config(), tiny_clip(), _text(*lines))


def test_without_redundancy_every_word_stays_and_nothing_more_is_encoded() -> None:
    config = replace(_config(), purification=replace(CAR, redundancy=False))
    assert not config.purification.needs_crops
    text = encode_words(tiny_clip(lively=False), config, Vocabulary.from_names(WORDS))
    assert text.prompt_embeddings is None
    [result] = SegmentationEngine(config, tiny_clip(), text).segment(PICTURES[:1])
    plain = replace(config, purification=PurificationConfig("none"))
    [expected] = SegmentationEngine(plain, tiny_clip(), text).segment(PICTURES[:1])
    assert np.array_equal(result.label_map, expected.label_map)


def test_the_upper_bound_and_several_settings_share_the_tower_with_it() -> None:
    engine = _engine(GROUND)
    plain = replace(engine.config, purification=PurificationConfig("none"))
    engines = VariantEngines([SegmentationEngine(plain, tiny_clip(), engine.text), engine])
    own, waves = engine.segment(PICTURES), engines.segment(PICTURES)[1]
    for first, second in zip(own, waves, strict=True):
        assert [entry.index for entry in first.kept] == [entry.index for entry in second.kept]
    for encoded in engines.encode(PICTURES)[1]:
        labels = Oracle(engine).label_map(encoded.single(0, engine), [2, 3])
        assert set(np.unique(labels)) <= {0, 2, 3}


def test_a_refiner_sees_the_words_that_are_left() -> None:
    for result in _engine(GROUND, replace(_config(), refine="pamr")).segment(PICTURES):
        assert {entry.index for entry in result.present} <= {entry.index for entry in result.kept} | {0}


def test_a_head_with_scores_of_its_own_is_filtered_as_well() -> None:
    for result in _engine(WORDS, _config("cliper")).segment(PICTURES):
        assert {entry.index for entry in result.present} <= {entry.index for entry in result.kept}


def test_what_cannot_be_filtered_is_refused() -> None:
    demo = replace(_config(), model=ModelConfig("demo"))
    with pytest.raises(ConfigError, match="clustering"):
        validate(replace(demo, host="cliptrase", cliptrase=CliptraseConfig(True)))
    with pytest.raises(ConfigError, match="class token"):
        validate(replace(demo, host="naclip", model=ModelConfig("ViT-B-16-SigLIP", "random")))
    labels = replace(demo.labels, background="residual")
    with pytest.raises(ConfigError, match="residual"):
        validate(replace(demo, labels=labels), Vocabulary.from_names(GROUND))
