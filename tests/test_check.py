import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ovss_core.api import OpenVocabSegmenter
from ovss_core.check import validate
from ovss_core.config import (
    LabelConfig,
    ModelConfig,
    PurificationConfig,
    SegmenterConfig,
    SfpConfig,
    WindowConfig,
)
from ovss_core.errors import ConfigError, ModelError, OvssError, WeightsError
from ovss_core.evaluation.benchmarks import BENCHMARKS, protocol_config
from ovss_core.vocabulary import Vocabulary
from tests.tiny import NAME, register_tiny_models, tiny_config

PLAIN = Vocabulary.from_names(["cat", "dog"])
WITH_BACKGROUND = Vocabulary.from_names(["background: sky, wall", "cat", "dog"])
NO_PURIFICATION = PurificationConfig(method="none")


def _config(**changes: Any) -> SegmenterConfig:
    return SegmenterConfig(**{"model": ModelConfig("demo"), **changes})


@pytest.mark.parametrize(
    ("config", "vocabulary", "error", "message"),
    [
        (
            _config(host="sfpp"),
            PLAIN,
            ConfigError,
            r"unknown host 'sfpp' \(did you mean 'sfp'\?\); give one of clearc",
        ),
        (_config(host="MaskCLIP"), PLAIN, ConfigError, r"did you mean 'maskclip'\?"),
        (_config(model=ModelConfig("ViT-B-17")), PLAIN, ModelError, r"did you mean 'ViT-B-16'\?"),
        (_config(model=ModelConfig("RN50")), PLAIN, ModelError, "ResNet image tower"),
        (_config(model=ModelConfig("ViT-L-14-CLIPA")), PLAIN, ModelError, "pools by 'avg'"),
        (_config(model=ModelConfig("demo", "/no/file.pt")), PLAIN, WeightsError, "'/no/file.pt' is no file"),
        (_config(model=ModelConfig("demo", "opnai")), PLAIN, WeightsError, "'opnai' is no file"),
        (_config(model=ModelConfig("ViT-B-16", "opnai")), PLAIN, WeightsError, r"did you mean 'openai'\?"),
        (
            _config(windows=WindowConfig(size=15, stride=8)),
            PLAIN,
            ConfigError,
            "15 pixels are smaller .* patches of 16",
        ),
        (
            _config(purification=PurificationConfig(crop_size=15)),
            PLAIN,
            ConfigError,
            "crops of 15 pixels are smaller than the model's patches of 16",
        ),
        (
            _config(sfp=SfpConfig("paper", integration_start=12)),
            PLAIN,
            ConfigError,
            "integration_start is 12, but of the 12 blocks of ovss-demo 1 to 11 are summed",
        ),
        (
            _config(labels=LabelConfig(background="first_class")),
            PLAIN,
            ConfigError,
            'has no class "background"',
        ),
        (_config(labels=LabelConfig(background="residual")), PLAIN, ConfigError, 'has no class "background"'),
        (
            _config(labels=LabelConfig(background="residual"), purification=NO_PURIFICATION),
            WITH_BACKGROUND,
            ConfigError,
            "needs purification; use --purify freecp",
        ),
        (
            _config(labels=LabelConfig(background="none")),
            Vocabulary.from_names(["_background_: sky"]),
            ConfigError,
            'no other class than "background"; add one',
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    config: SegmenterConfig, vocabulary: Vocabulary, error: type[OvssError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        validate(config, vocabulary)
    assert "\n" not in str(raised.value)
    with pytest.raises(error, match=message):
        OpenVocabSegmenter.from_pretrained(
            config.model.name, config.model.pretrained, vocabulary=vocabulary, config=config, device="cpu"
        )


@pytest.mark.parametrize(
    ("descriptions", "message"),
    [
        ({"cta": ["it purrs"]}, r"lacks: cta; remove them \(did you mean 'cat'\?\)"),
        ({"cat": "it purrs"}, "description of 'cat' is not a list of sentences"),
        ({"cat": []}, "description of 'cat' is not a list of sentences"),
        ({"cat": ["it purrs", " "]}, "description of 'cat' is not a list of sentences"),
        ({"cat": ["it purrs", 3]}, "description of 'cat' is not a list of sentences"),
    ],
)
def test_descriptions_that_belong_to_nothing_are_refused(descriptions: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(_config(), PLAIN, descriptions)


def test_what_works_passes_without_a_word() -> None:
    register_tiny_models()
    for vocabulary in (None, PLAIN, WITH_BACKGROUND):
        assert validate(SegmenterConfig(), vocabulary) == []
        assert validate(tiny_config(), vocabulary) == []
    assert validate(_config(), PLAIN, {"cat": ["it purrs"]}) == []
    edges = _config(
        windows=WindowConfig(size=16, stride=16),
        purification=PurificationConfig(crop_size=16),
        sfp=SfpConfig("paper", integration_start=11),
    )
    assert validate(edges, PLAIN) == []


@pytest.mark.parametrize("purify", ["none", "freecp"])
def test_the_papers_settings_pass_on_every_benchmark(purify: Any) -> None:
    for name in BENCHMARKS:
        config, vocabulary = protocol_config(name, "sfp", purify)
        warnings = validate(config, vocabulary)
        shared = [
            warning for warning in warnings if "stands for the classes 'background' and 'bed'" in warning
        ]
        assert warnings == shared, name  # the papers' own list for COCO-Object names a bed in its background
        assert bool(shared) == (name == "coco_object" and purify == "none")


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["Cat", "dog", "cat"], ("Cat", "cat")),
        (["cat, kitten", "young cat: kitten"], ("cat", "young cat")),
        (["traffic  light", "dog", "light: Traffic Light"], ("traffic  light", "light")),
        (["dog", "wolf, dog", "hound: dog"], ("dog", "wolf")),
    ],
)
def test_two_classes_that_mean_one_word_are_a_warning(lines: list[str], names: tuple[str, str]) -> None:
    [warning, *_] = validate(_config(), Vocabulary.from_names(lines))
    assert f"stands for the classes {names[0]!r} and {names[1]!r}" in warning
    assert f"{names[1]!r} can never win by it" in warning


def test_many_such_words_are_counted_after_the_first_three() -> None:
    lines = [f"class {index}" for index in range(10)]
    warnings = validate(_config(), Vocabulary.from_names([*lines, *(line.upper() for line in lines)]))
    assert len(warnings) == 4
    assert warnings[-1] == "7 more phrases stand for two classes each"


def test_a_phrase_of_the_background_counts_where_the_background_competes() -> None:
    vocabulary = Vocabulary.from_names(["background: sky", "sky", "cat"])
    assert validate(_config(), vocabulary) == []
    competing = _config(labels=LabelConfig(background="first_class"))
    assert "stands for the classes 'background' and 'sky'" in validate(competing, vocabulary)[0]


def test_a_class_without_a_rival_is_a_warning() -> None:
    [warning] = validate(_config(), Vocabulary.from_names(["cat"]))
    assert warning.startswith("every pixel will be 'cat'")
    assert validate(_config(), Vocabulary.from_names(["cat", "background"])) == []


@pytest.mark.parametrize(
    ("config", "vocabulary", "idle"),
    [
        (
            _config(labels=LabelConfig(logit_scale=50, min_area=0.1)),
            PLAIN,
            ["labels.logit_scale", "labels.min_area"],
        ),
        (
            _config(purification=PurificationConfig(method="none", crop_size=99)),
            PLAIN,
            ["purification.crop_size (it goes with --purify freecp)"],
        ),
        (
            _config(purification=PurificationConfig(thresholds="distractors", redundancy_threshold=0.3)),
            PLAIN,
            ["purification.redundancy_threshold (it goes with purification.thresholds published or fixed)"],
        ),
        (_config(host="clip", sfp=SfpConfig("paper")), PLAIN, ["sfp.variant (it goes with --host sfp)"]),
        (
            _config(purification=NO_PURIFICATION, labels=LabelConfig(min_probability=0.3)),
            PLAIN,
            ["labels.min_probability (the vocabulary has no background class)"],
        ),
        (
            _config(purification=NO_PURIFICATION, labels=LabelConfig(min_probability=0.3, background="none")),
            WITH_BACKGROUND,
            ['labels.min_probability (labels.background is "none")'],
        ),
    ],
)
def test_settings_that_nothing_reads_are_a_warning(
    config: SegmenterConfig, vocabulary: Vocabulary, idle: list[str]
) -> None:
    [warning] = validate(config, vocabulary)
    assert warning.startswith("without effect here: ")
    assert all(name in warning for name in idle)
    assert warning.count("it goes with") + warning.count("labels.min_prob") == len(idle)


def test_descriptions_that_nothing_reads_are_a_warning() -> None:
    [warning] = validate(_config(purification=NO_PURIFICATION), PLAIN, {"cat": ["it purrs"]})
    assert warning == (
        "without effect here: descriptions (they go with --purify freecp and purification.ambiguity)"
    )


def test_the_check_imports_neither_torch_nor_open_clip_and_knows_the_shipped_names(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from ovss_core.check import validate\n"
        "from ovss_core.config import ModelConfig, SegmenterConfig\n"
        "from ovss_core.vocabulary import Vocabulary\n"
        "words = Vocabulary.load('cat,Cat')\n"
        "print(len(validate(SegmenterConfig(ModelConfig('ViT-L-14', 'laion2b_s32b_b82k')), words)))\n"
        "print([name for name in ('torch', 'open_clip', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["1", "[]"]


def test_the_python_api_says_warnings_once(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_tiny_models()
    monkeypatch.setenv("OVSS_CACHE", str(tmp_path))
    words, config = ["Cat", "cat", "a very long phrase " * 24], tiny_config(purification=NO_PURIFICATION)
    OpenVocabSegmenter.from_pretrained(NAME, "random", vocabulary=words, config=config, device="cpu")
    said = [record.getMessage() for record in caplog.records if record.name == "ovss_core.api"]
    assert len(said) == 2
    assert "stands for the classes 'Cat' and 'cat'" in said[0]
    assert "the text tower reads 77 tokens: the end of 'a very long phrase a very" in said[1]


@pytest.mark.parametrize(
    ("device", "message"), [("gpu", "unknown device 'gpu'"), ("cuda:99x", "unknown device")]
)
def test_the_python_api_refuses_a_device_that_is_not_there(device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OpenVocabSegmenter.from_pretrained("demo", vocabulary="cat,dog", device=device)


def test_the_old_name_of_the_distractors_threshold_is_taken_with_one_line() -> None:
    [warning] = validate(_config(purification=PurificationConfig(thresholds="auto")), PLAIN)
    assert "distractors" in warning
    assert not validate(_config(purification=PurificationConfig(thresholds="distractors")), PLAIN)
    assert not validate(_config(purification=PurificationConfig(method="none")), PLAIN)
    auto, new = (PurificationConfig(thresholds=name) for name in ("auto", "distractors"))
    assert auto.needs_distractors
    assert new.needs_distractors
