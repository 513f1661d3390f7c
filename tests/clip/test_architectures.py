import sys
from importlib.util import find_spec
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import _build_vision_tower

from ovss_core.clip import architectures
from ovss_core.clip.architectures import (
    architecture_names,
    architectures_like,
    find_architecture,
    weight_tags,
)
from ovss_core.clip.tower import ImageEncoder
from ovss_core.errors import ModelError
from tests.tiny import NAME, register_tiny_models, tiny_clip


@pytest.fixture
def without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide that open_clip is loaded, so that its files are read as before any import."""
    monkeypatch.delitem(sys.modules, "open_clip")


def test_the_names_read_from_files_are_those_that_open_clip_lists(without_open_clip: None) -> None:
    shipped = {path.stem for path in (Path(open_clip.__file__).parent / "model_configs").glob("*.json")}
    assert set(architecture_names()) == {*shipped, "demo", "ovss-demo"}


def test_the_tags_read_from_its_source_are_those_that_open_clip_lists(without_open_clip: None) -> None:
    expected: dict[str, list[str]] = {}
    for name, tag in open_clip.list_pretrained():
        expected.setdefault(name, []).append(tag)
    assert architectures._listed_tags() == expected
    assert weight_tags("ViT-B/16")[0] == "openai"
    assert "openai" in weight_tags("ViT-B-16-quickgelu")
    assert weight_tags("demo") == []


def test_a_table_written_in_another_way_is_asked_of_open_clip_itself(
    without_open_clip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "_listed_tags", dict)
    assert weight_tags("ViT-B-16") == open_clip.list_pretrained_tags_by_model("ViT-B-16")


def test_the_description_says_what_the_built_tower_has() -> None:
    register_tiny_models()
    for name in (NAME, "tiny-ViT-16", "tiny-ViT-8-layer-scale", "demo"):
        found = find_architecture(name)
        assert found is not None
        tower = ImageEncoder(tiny_clip(name, lively=False).model.visual)
        assert (found.patch_size, found.depth) == (tower.patch_size, tower.depth)


@pytest.mark.slow
def test_every_tower_of_open_clip_is_judged_as_it_is_when_it_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(architectures, "_require_text_package", lambda name, text: None)
    for name in open_clip.list_models():
        described = open_clip.get_model_config(name)
        vision = described["vision_cfg"]
        if "timm_model_name" in vision:
            continue
        with torch.device("meta"):
            tower = _build_vision_tower(described["embed_dim"], vision, described.get("quick_gelu", False))
        try:
            encoder = ImageEncoder(tower)
        except ModelError:
            with pytest.raises(ModelError):
                find_architecture(name)
        else:
            found = find_architecture(name)
            assert found is not None, name
            assert (found.patch_size, found.depth) == (encoder.patch_size, encoder.depth), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-17", r"unknown architecture 'ViT-B-17' \(did you mean 'ViT-B-16'\?\)"),
        ("vit-l-14", r"did you mean 'ViT-L-14'\?"),
        ("dmeo", r"did you mean 'demo'\?"),
        ("openai:ViT-B-16", "unknown architecture"),
        ("RN50", "RN50 has a ResNet image tower"),
        ("ViTamin-B", r"timm image tower \(vitamin_base_224\)"),
        ("coca_ViT-L-14", "pools by 'attention', not by its class token"),
        ("ViT-L-14-CLIPA", "pools by 'avg', not by its class token"),
        ("local-dir:/nowhere", r"/nowhere/open_clip_config\.json describes no architecture"),
    ],
)
def test_an_architecture_that_cannot_be_taken_apart_is_refused_by_its_description(
    name: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        find_architecture(name)


@pytest.mark.parametrize("name", ["xlm-roberta-base-ViT-B-32", "roberta-ViT-B-32", "nllb-clip-base"])
def test_a_text_tower_names_the_package_that_it_lacks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        architectures, "find_spec", lambda package: None if package == "transformers" else find_spec(package)
    )
    with pytest.raises(
        ModelError, match=r"needs the package transformers, .*pip install transformers, or choose"
    ):
        find_architecture(name)
    monkeypatch.setattr(architectures, "find_spec", lambda package: find_spec("open_clip"))
    assert find_architecture(name) is not None


def test_a_folder_that_open_clip_saved_is_read(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8}}')
    with pytest.raises(ModelError, match="lacks vision_cfg or text_cfg"):
        find_architecture(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text(
        '{"model_cfg": {"embed_dim": 8, "vision_cfg": {"layers": 3, "patch_size": 4}, "text_cfg": {}}}'
    )
    found = find_architecture(f"local-dir:{tmp_path}")
    assert found is not None
    assert (found.patch_size, found.depth, found.context_length) == (4, 3, 77)


def test_weights_tell_which_architectures_they_fit() -> None:
    register_tiny_models()
    shapes = {key: tuple(value.shape) for key, value in tiny_clip().model.state_dict().items()}
    assert NAME in architectures_like(shapes)
    assert "tiny-ViT-16" not in architectures_like(shapes)
    assert architectures_like({"visual.proj": (3, 4)}) == []
