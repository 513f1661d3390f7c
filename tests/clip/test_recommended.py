"""What a model's card recommends fills what the user did not set."""

import json
from pathlib import Path

import pytest

from jobs.arguments import parse_with_protocol, say_recommended, take_segmenter
from jobs.label import build_parser
from ovss_core.api import OpenVocabSegmenter
from ovss_core.clip.demo import demo_weights_path
from ovss_core.clip.recommended import SUFFIX, filled, recommended_settings
from ovss_core.config import ModelConfig, SegmenterConfig
from ovss_core.errors import ConfigError

DEMO = ModelConfig("demo")
JOB = ["--images", "photos", "--output", "out/x", "--vocabulary", "demo"]


def parsed(*words: str) -> SegmenterConfig:
    values, _ = parse_with_protocol(build_parser(), [*JOB, *words])
    say_recommended(values)
    return take_segmenter(values)


def test_the_demo_model_takes_what_it_recommends(capsys: pytest.CaptureFixture[str]) -> None:
    advised = filled(recommended_settings(DEMO))
    assert advised.host == "clearclip"
    config = parsed("--model", "demo")
    assert (config.host, config.purification) == (advised.host, advised.purification)
    assert "demo recommends --host clearclip" in capsys.readouterr().err
    engine = OpenVocabSegmenter.from_pretrained("demo", vocabulary="cat,dog", device="cpu").engine
    assert (engine.config.host, engine.config.purification) == (advised.host, advised.purification)


def test_what_the_user_sets_stays(capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed("--model", "demo", "--host", "sfp", "--variant", "image")
    assert (config.host, config.purification.variant) == ("sfp", "image")
    assert "recommends" not in capsys.readouterr().err
    given = SegmenterConfig(host="naclip")
    kept = OpenVocabSegmenter.from_pretrained("demo", vocabulary="cat,dog", config=given, device="cpu")
    assert kept.engine.config.host == "naclip"


def test_other_models_recommend_nothing() -> None:
    assert recommended_settings(ModelConfig()) == {}
    assert parsed().host == SegmenterConfig().host


def test_settings_beside_a_file_of_weights_are_read(tmp_path: Path) -> None:
    weights = tmp_path / "mine.pt"
    weights.with_name(f"mine.pt{SUFFIX}").write_text(
        json.dumps({"windows": {"size": 384, "short_side": 448}})
    )
    config = parsed("--model", "ViT-B-16", "--pretrained", str(weights))
    assert (config.windows.size, config.windows.short_side, config.windows.stride) == (384, 448, 112)


@pytest.mark.parametrize(
    "text", ["[", "[]", '{"model": {"name": "x"}}', '{"dream": 1}', '{"windows": {"size": 0}}']
)
def test_settings_that_cannot_be_used_are_refused(tmp_path: Path, text: str) -> None:
    weights = tmp_path / "mine.pt"
    weights.with_name(f"mine.pt{SUFFIX}").write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.pt\.settings\.json cannot be used"):
        recommended_settings(ModelConfig("ViT-B-16", str(weights)))


def test_the_shipped_settings_lie_beside_the_shipped_weights() -> None:
    assert demo_weights_path().with_name(f"{demo_weights_path().name}{SUFFIX}").is_file()
