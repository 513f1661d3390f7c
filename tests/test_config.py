import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from ovss_core.config import (
    LabelConfig,
    ModelConfig,
    PurificationConfig,
    PurificationNumbers,
    SegmenterConfig,
    SfpConfig,
    WindowConfig,
    published_thresholds,
)
from ovss_core.errors import ConfigError


def test_a_configuration_survives_the_trip_through_json() -> None:
    config = SegmenterConfig(
        model=ModelConfig("ViT-L-14", "/tmp/weights.pt", "bfloat16", quick_gelu=True),
        host="sclip",
        sfp=SfpConfig("paper", outlier_factor=1.2, max_outliers=7),
        windows=WindowConfig(448, 384, 560, 4096),
        purification=PurificationConfig("none", "paper", thresholds="fixed", redundancy_threshold=0.15),
        labels=LabelConfig(min_area=0.1, background="first_class"),
        window_batch=7,
    )
    again = SegmenterConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again != SegmenterConfig()
    assert SegmenterConfig.from_dict({}) == SegmenterConfig()


def test_unknown_fields_are_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown fields \['hots'\] for SegmenterConfig; it has .*'host'"):
        SegmenterConfig.from_dict({"hots": "sfp"})
    with pytest.raises(ConfigError, match=r"unknown fields \['sise'\] for WindowConfig"):
        SegmenterConfig.from_dict({"windows": {"sise": 3}})


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            ModelConfig,
            {"precision": "fp16"},
            "precision is 'fp16'; give one of 'float32', 'bfloat16', 'float16'",
        ),
        (WindowConfig, {"size": 0}, r"windows\.size is 0; give at least 1"),
        (WindowConfig, {"short_side": -3}, r"windows\.short_side is -3"),
        (
            WindowConfig,
            {"size": 224, "stride": 225},
            "stride 225 is larger than windows.size 224, which leaves gaps",
        ),
        (SfpConfig, {"variant": "code"}, r"sfp\.variant is 'code'; give one of 'released', 'paper'"),
        (SfpConfig, {"outlier_rule": "lof"}, r"sfp\.outlier_rule is 'lof'"),
        (SfpConfig, {"integration_start": 0}, "blocks count from 1"),
        (SfpConfig, {"integration_rounds": 0}, "give at least 1"),
        (SfpConfig, {"max_outliers": -1}, r"sfp\.max_outliers is -1; give at least 0"),
        (
            PurificationConfig,
            {"method": "yes"},
            r"purification\.method is 'yes'; give one of 'freecp', 'car', 'none'",
        ),
        (PurificationConfig, {"variant": "window"}, r"purification\.variant"),
        (PurificationConfig, {"thresholds": 0.1}, r"purification\.thresholds is 0\.1"),
        (PurificationConfig, {"redundancy_threshold": 1.5}, "give a number from 0 to 1"),
        (PurificationConfig, {"ambiguity_threshold": float("nan")}, "give a number from 0 to 1"),
        (PurificationConfig, {"phrase_chunk": 0}, "phrase_chunk is 0"),
        (PurificationConfig, {"crop_size": 0}, "crop_size is 0"),
        (LabelConfig, {"background": "zero"}, r"labels\.background is 'zero'; give one of 'auto'"),
        (LabelConfig, {"min_probability": 2}, "give 0 to 1"),
        (SegmenterConfig, {"window_batch": 0}, "window_batch is 0; give at least 1"),
        (SegmenterConfig, {"max_pixels": 0}, "max_pixels is 0"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_name_and_what_to_give(
    kind: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**values)


def test_configurations_are_frozen_and_comparable() -> None:
    with pytest.raises(FrozenInstanceError):
        SegmenterConfig().host = "clip"  # type: ignore[misc]
    assert hash(SegmenterConfig()) == hash(SegmenterConfig())


def test_settings_of_heads_that_do_not_run_decide_nothing() -> None:
    switched = SfpConfig("paper")
    plain, other = SegmenterConfig(host="naclip"), SegmenterConfig(host="naclip", sfp=switched)
    assert plain.head_settings("naclip") is None
    assert plain.tower_part == other.tower_part
    assert plain.deciding() == other.deciding()
    assert "sfp" not in plain.deciding()
    asked = SegmenterConfig(sfp=switched)
    assert asked.head_settings("sfp") is switched
    assert asked.tower_part != SegmenterConfig().tower_part
    assert asked.deciding()["sfp"]["variant"] == "paper"


@pytest.mark.parametrize(
    ("words", "redundancy", "ambiguity"),
    [(2, 0.15, 0.8), (20, 0.15, 0.8), (59, 0.10, 0.7), (150, 0.05, 0.7), (171, 0.05, 0.7), (5000, 0.05, 0.7)],
)
def test_the_published_thresholds_lie_on_the_curve(words: int, redundancy: float, ambiguity: float) -> None:
    assert published_thresholds(words) == pytest.approx((redundancy, ambiguity), abs=0.005)


def test_the_curve_falls_and_given_numbers_take_its_place() -> None:
    curve = [published_thresholds(words) for words in range(1, 300)]
    assert curve == sorted(curve, reverse=True)
    left, given = PurificationConfig(), PurificationConfig(redundancy_threshold=0.0, score_scale=7.0)
    assert left.numbers(150, 28.0) == PurificationNumbers(*published_thresholds(150), 28.0)
    assert given.numbers(20, 28.0) == PurificationNumbers(0.0, 0.8, 7.0)
