import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ovss_core.errors import ConfigError
from pipelines.demonstration.crops import draw_crops, patch_shares
from pipelines.demonstration.recipe import TrainingConfig
from pipelines.demonstration.training import class_weights, learning_rate, train_demo
from pipelines.demonstration.words import CLASS_NAMES

TINY = TrainingConfig(
    scenes=4,
    word_steps=2,
    small_steps=2,
    small_batch=2,
    large_steps=2,
    large_batch=2,
    check_scenes=0,
    workers=1,
    warmup_steps=1,
)


def states(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"], load_file(
        folder / "ovss_demo.safetensors"
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped after its first step."""
    folder = tmp_path_factory.mktemp("begun") / "training"
    stopped = train_demo(folder, TINY, stop_after=1)
    assert stopped.name == "checkpoint.pt"
    assert not (folder / "ovss_demo.safetensors").exists()
    return folder


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
    begun: Path, tmp_path: Path
) -> None:
    train_demo(tmp_path / "whole", TINY)
    shutil.copytree(begun, tmp_path / "parts")
    train_demo(tmp_path / "parts", TINY, stop_after=3)
    train_demo(tmp_path / "parts", TINY)
    for one, other in zip(states(tmp_path / "whole"), states(tmp_path / "parts"), strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name


def test_two_steps_change_both_towers_and_the_loss_is_printed(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = torch.load(begun / "checkpoint.pt", weights_only=True)["model"]
    folder = shutil.copytree(begun, tmp_path / "training")
    second = torch.load(train_demo(folder, TINY, stop_after=2), weights_only=True)["model"]
    for name in (
        "visual.conv1.weight",
        "visual.proj",
        "transformer.resblocks.0.mlp.c_fc.weight",
        "text_projection",
    ):
        assert not torch.equal(first[name], second[name])
    assert "step 2/4 caption" in capsys.readouterr().out


def test_the_first_part_may_be_made_longer_while_it_runs_but_the_recipe_may_not_change(
    begun: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(begun, tmp_path / "training")
    longer = TrainingConfig(**{**vars(TINY), "small_steps": 3})
    assert train_demo(folder, longer, stop_after=2).name == "checkpoint.pt"
    with pytest.raises(ConfigError, match="another training"):
        train_demo(folder, TrainingConfig(**{**vars(TINY), "learning_rate": 0.5}))


def test_a_training_without_steps_or_crops_is_refused() -> None:
    with pytest.raises(ConfigError, match="small_batch"):
        TrainingConfig(small_batch=0)
    with pytest.raises(ConfigError, match="steps"):
        TrainingConfig(small_steps=0, large_steps=0)


def test_the_learning_rate_rises_stays_and_falls_to_nearly_zero() -> None:
    config = TrainingConfig(small_steps=100, large_steps=50, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(config.steps)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:100]) == {1.0}
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.02)


def test_patch_shares_are_counted_pixels_of_each_patch() -> None:
    labels = np.zeros((1, 32, 48), np.uint8)
    labels[0, 16:, 32:40] = 5
    shares = patch_shares(labels)
    assert shares.shape == (1, 6, len(CLASS_NAMES))
    assert shares[0, :5, 0].tolist() == [1.0] * 5
    assert shares[0, 5, [0, 5]].tolist() == [0.5, 0.5]


def test_crops_are_the_same_for_the_same_draws_and_their_captions_name_what_they_show() -> None:
    store = np.zeros((2, 64, 64, 4), np.uint8)
    store[..., 3] = CLASS_NAMES.index("sheep")
    one, same = (draw_crops(store, 3, 32, (32, 64), random.Random(5)) for _ in range(2))
    assert torch.equal(one.images, same.images)
    assert one.captions == same.captions
    assert all("sheep" in caption or "lamb" in caption for caption in one.captions)
    assert one.patch_shares[..., CLASS_NAMES.index("sheep")].min() == 1


def test_rare_classes_count_more_and_the_weights_average_to_one() -> None:
    labels = np.repeat(np.arange(len(CLASS_NAMES)), 10)
    labels = np.concatenate([labels, np.zeros(2000, labels.dtype)])
    weights = class_weights(labels)
    assert weights.mean().item() == pytest.approx(1)
    assert weights[0] < weights[1]
