import copy
import random

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from ovss_core.clip.demo import DEMO_ARCHITECTURE
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.weights import ClipModel, load_clip
from ovss_core.config import ModelConfig
from ovss_core.dense_heads import HeadOptions, build_head
from pipelines.demonstration.crops import CropBatch, patch_shares
from pipelines.demonstration.objective import (
    SECOND_WEIGHTS,
    WordBank,
    attention_loss,
    similarity_loss,
    training_loss,
)
from pipelines.demonstration.tower_reader import TRAINING_HOSTS, TowerReader
from pipelines.demonstration.words import CLASS_NAMES


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return load_clip(ModelConfig(name="demo"))


def pictures(count: int, side: int) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("purified", [False, True])
@pytest.mark.parametrize("host", TRAINING_HOSTS)
def test_training_reads_the_patches_as_the_host_does(clip: ClipModel, host: str, purified: bool) -> None:
    encoder, head = ImageEncoder(clip.model.visual), build_head(host, HeadOptions(purified=purified))
    images = pictures(2, 224)
    expected = F.normalize(head.features(encoder, encoder.trace(images, head.request(12))), dim=-1)
    reader = TowerReader(copy.deepcopy(clip.model.visual))
    trace = reader.trace(images, reader.draw_positions((14, 14)))
    torch.testing.assert_close(reader.patch_features(trace, host, purified), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("host", TRAINING_HOSTS)
def test_gradients_through_every_host_are_finite_and_reach_the_patch_filters(
    clip: ClipModel, host: str
) -> None:
    reader = TowerReader(copy.deepcopy(clip.model.visual))
    trace = reader.trace(pictures(2, 112), reader.draw_positions((7, 7), random.Random(3)))
    reader.patch_features(trace, host)[..., 0].sum().backward()
    gradients = {name: p.grad for name, p in reader.visual.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["conv1.weight"].abs().max() > 0


def test_the_loss_trains_every_parameter_of_both_towers(clip: ClipModel) -> None:
    model = copy.deepcopy(clip.model).requires_grad_(True)
    labels = np.repeat(np.arange(4, dtype=np.uint8), 28)[None, :, None].repeat(112, 2)
    shares = torch.from_numpy(patch_shares(np.concatenate([labels, labels[:, ::-1]])))
    batch = CropBatch(pictures(2, 112), shares, ["a cat", "a dog on a hill"])
    bank = WordBank(open_clip.get_tokenizer(DEMO_ARCHITECTURE))
    loss, terms = training_loss(
        model,
        TowerReader(model.visual),
        batch,
        bank,
        torch.ones(len(CLASS_NAMES)),
        SECOND_WEIGHTS,
        random.Random(0),
    )
    loss.backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert untouched == []
    assert set(terms) == set(SECOND_WEIGHTS)
    total = sum(SECOND_WEIGHTS[name] * value for name, value in terms.items())
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert all(np.isfinite(value) for value in terms.values())


def test_attention_within_classes_costs_nothing_and_across_classes_much() -> None:
    same = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))[None]
    within = attention_loss(same / 4, same, torch.ones(1, 4))
    across = attention_loss((1 - same) / 4, same, torch.ones(1, 4))
    even = attention_loss(torch.full((1, 4, 4), 0.1), same, torch.ones(1, 4))
    assert within.item() == pytest.approx(0, abs=0.01)
    assert even.item() == pytest.approx(np.log(2), abs=0.01)
    assert across.item() > 6


def test_similarity_is_free_within_its_bounds_and_squared_beyond() -> None:
    same = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))[None]
    apart = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    assert similarity_loss(apart, same).item() == 0
    alike = torch.ones(1, 5, 2)
    assert similarity_loss(alike, same).item() == pytest.approx(0.8**2, abs=1e-5)
    opposed = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]])
    assert similarity_loss(opposed, same).item() == pytest.approx(1.7**2 / 2, abs=1e-5)
