from pathlib import Path

import pytest

from ovss_core.check import validate
from ovss_core.clip.architectures import weight_tags
from ovss_core.clip.licenses import find_license, license_warning
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig
from ovss_core.evaluation.benchmarks import get_benchmark
from ovss_core.vocabulary import Vocabulary
from pipelines.evaluate.checks import check_evaluate
from pipelines.evaluate.options import PairOptions
from pipelines.run.options import PoolOptions, RunOptions

VOCABULARY = Vocabulary.from_names(["cat", "dog"])


@pytest.mark.parametrize(
    ("name", "tag", "license", "commercial"),
    [
        ("ViT-B-16-quickgelu", "metaclip_fullcc", "CC-BY-NC-4.0", False),
        ("ViT-B-16", "MetaCLIP-400m", "CC-BY-NC-4.0", False),
        ("ViT-H-14-worldwide", "metaclip2_worldwide", "CC-BY-NC-4.0", False),
        ("ViT-H-14", "metaclip_altogether", "CC-BY-NC-4.0", False),
        ("ViT-L-14", "dfn2b_s39b", "research only", False),
        ("ViT-B-16", "openai", "MIT", True),
        ("ViT-B-16", "laion2b_s34b_b88k", "MIT", True),
        ("ViT-B-16", "commonpool_l_s1b_b8k", "not known", None),
        ("demo", "openai", "Apache-2.0", True),
        ("ViT-B-16", "random", "none: random numbers", True),
    ],
)
def test_a_tag_has_its_publisher_s_license(
    name: str, tag: str, license: str, commercial: bool | None
) -> None:
    found = find_license(ModelConfig(name, tag))
    assert license in found.name
    assert found.commercial is commercial
    warnings = license_warning(ModelConfig(name, tag))
    assert len(warnings) == (commercial is False)
    assert all(tag in line and found.name in line and "\n" not in line for line in warnings)


@pytest.mark.parametrize(
    "architecture", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-B-16-quickgelu"]
)
def test_no_tag_of_metaclip_or_apple_goes_without_a_word(architecture: str) -> None:
    for tag in weight_tags(architecture):
        forbidden = "metaclip" in tag or "dfn" in tag
        assert bool(license_warning(ModelConfig(architecture, tag))) == forbidden, tag


def test_a_file_s_license_is_its_owner_s_to_know(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"PK" + bytes(100))
    assert find_license(ModelConfig("ViT-B-16", str(file))).commercial is None


def test_a_hub_s_repository_is_known_by_its_name() -> None:
    assert find_license(ModelConfig("hf-hub:facebook/metaclip-b16")).commercial is False
    assert find_license(ModelConfig("hf-hub:laion/some-model")).commercial is None


def test_the_line_comes_with_the_other_warnings_of_every_job() -> None:
    config = SegmenterConfig(ModelConfig("ViT-B-16", "metaclip_400m"), purification=PurificationConfig())
    [line] = validate(config, VOCABULARY)
    assert "forbids commercial use (CC-BY-NC-4.0)" in line
    run, pools = RunOptions("out/none"), PoolOptions()
    for grid in (False, True):
        folders = PairOptions(images="images", masks="masks", vocabulary="cat,dog", grid=grid)
        assert line in check_evaluate(folders, run, pools, config, VOCABULARY)
    benchmark = PairOptions(benchmark="voc21", root="root", grid="systems")
    words = Vocabulary.load("voc21")
    assert len(words) == get_benchmark("voc21").classes
    assert line in check_evaluate(benchmark, run, pools, config, words)
