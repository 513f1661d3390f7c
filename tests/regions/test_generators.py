from pathlib import Path

import numpy as np
import pytest
import torch

from ovss_core.config import GeneratorConfig
from ovss_core.errors import ConfigError, ModelError
from ovss_core.regions import RegionMap
from ovss_core.regions.generators import lay_over, load_generator
from tests.tiny import random_picture


def test_a_pixel_belongs_to_the_smallest_or_the_largest_mask_that_holds_it() -> None:
    masks = [np.zeros((4, 6), bool) for _ in range(3)]
    masks[0][:, :4] = True
    masks[1][1:3, 1:3] = True
    masks[2][:, 2:] = True
    small, large = (lay_over(masks, (4, 6), on_top).ids for on_top in ("small", "large"))
    assert small[1, 1] == small[2, 2]
    assert (small == small[1, 1]).sum() == 4
    assert set(np.unique(small)) == {1, 2, 3}
    assert set(np.unique(large)) == {1, 2}  # the small mask is hidden as a whole
    assert lay_over([], (4, 6), "small").ids.max() == 0


def test_a_region_map_of_any_number_of_regions_comes_back_from_its_png() -> None:
    for most in (0, 200, 4000):
        ids = np.random.default_rng(0).integers(0, most + 1, (70, 90)).astype(np.int32)
        found = RegionMap.decode(RegionMap.of_array(ids).to_png(), 10_000)
        np.testing.assert_array_equal(found.ids, ids)
    with pytest.raises(ValueError, match=r"70000 regions.*65535"):
        RegionMap.of_array(np.array([[70000]], np.int32)).to_png()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": 0}, "points is 0; give at least 1"),
        ({"min_quality": 1.5}, "min_quality is 1.5; give a number from 0 to 1"),
        ({"on_top": "old"}, "on_top is 'old'; give one of 'small', 'large'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GeneratorConfig("somewhere", **changes)  # type: ignore[arg-type]


def save_eomt(folder: Path) -> Path:
    """Save a tiny EoMT with random weights as transformers does."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.EomtConfig(
        **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64},
        **{"patch_size": 16, "num_blocks": 1, "num_queries": 6, "num_register_tokens": 1, "num_labels": 3},
    )
    model = transformers.EomtForUniversalSegmentation(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * max(parameter.shape[-1], 1) ** -0.5)
        model.class_predictor.bias[-1] = -20  # every query finds something
    model.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 64}
    transformers.EomtImageProcessor(size=size, do_pad=True).save_pretrained(folder)
    return folder


def save_sam(folder: Path) -> Path:
    """Save a tiny SAM 2 with random weights as transformers does."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[128, 128],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 2],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[2],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    prompts = transformers.Sam2PromptEncoderConfig(hidden_size=32, image_size=128)
    decoder = transformers.Sam2MaskDecoderConfig(
        **{"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    )
    config = transformers.Sam2Config(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    transformers.Sam2Model(config).save_pretrained(folder)
    transformers.Sam2ImageProcessor(size={"height": 128, "width": 128}).save_pretrained(folder)
    return folder


def test_eomt_is_loaded_as_it_is_saved_and_numbers_its_segments(tmp_path: Path) -> None:
    generator = load_generator(GeneratorConfig(str(save_eomt(tmp_path)), min_quality=0.0))
    ids = generator.generate(random_picture(48, 80)).ids
    assert ids.shape == (48, 80)
    assert ids.max() >= 1
    assert set(np.unique(ids)) - {0} == set(range(1, ids.max() + 1))


def test_sam_is_loaded_as_it_is_saved_and_its_masks_become_disjoint(tmp_path: Path) -> None:
    loose = GeneratorConfig(str(save_sam(tmp_path)), 3, 4, min_quality=0.0, min_stability=0.0)
    picture = random_picture(70, 90)
    ids = load_generator(loose).generate(picture).ids
    assert ids.shape == (70, 90)
    assert ids.max() >= 1
    assert set(np.unique(ids)) - {0} == set(range(1, ids.max() + 1))
    strict = GeneratorConfig(str(tmp_path), 3, 4, min_quality=1.0)
    assert load_generator(strict).generate(picture).ids.max() == 0


def test_what_is_no_mask_generator_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_generator(GeneratorConfig(str(tmp_path / "nowhere")))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="type 'bert'"):
        load_generator(GeneratorConfig(str(tmp_path)))
