import numpy as np
import pytest
import torch
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from tests.tiny import slow_tower, tiny_tower


def _tokens(count: int = 3, tokens: int = 17, width: int = 32) -> Tensor:
    return torch.randn(count, tokens, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_a_block_equals_open_clips_own_forward(quick_gelu: bool, layer_scale: float | None) -> None:
    original = tiny_tower(quick_gelu=quick_gelu, layer_scale=layer_scale).transformer.resblocks[1]
    block, tokens = TransformerBlock(original), _tokens()
    assert torch.allclose(block.forward(tokens), original(tokens), atol=1e-4)


def test_running_with_attention_changes_the_output_by_rounding_only() -> None:
    block, tokens = TransformerBlock(tiny_tower().transformer.resblocks[0]), _tokens()
    output, _ = block.forward_with_attention(tokens)
    assert torch.allclose(output, block.forward(tokens), atol=1e-4)


def test_the_returned_attention_is_the_head_mean_of_the_dense_softmax() -> None:
    tower = tiny_tower()
    tokens = _tokens()
    _, mean = TransformerBlock(tower.transformer.resblocks[2]).forward_with_attention(tokens)
    slow = slow_tower(tower)
    for window, expected in zip(mean, tokens.double().numpy(), strict=True):
        np.testing.assert_allclose(window.numpy(), np.mean(slow.attention(3, expected), 0), atol=2e-6)
    assert mean.dtype == torch.float32
    assert torch.allclose(mean.sum(-1), torch.ones(3, 17), atol=1e-5)


def test_the_value_alone_equals_the_value_of_all_three() -> None:
    block, tokens = TransformerBlock(tiny_tower().transformer.resblocks[0]), _tokens()
    assert torch.allclose(block.value(tokens), block.query_key_value(tokens)[2], atol=1e-5)


def test_the_class_token_alone_equals_the_class_token_of_the_whole_block() -> None:
    block, tokens = TransformerBlock(tiny_tower().transformer.resblocks[3]), _tokens()
    assert torch.allclose(block.class_token(tokens), block.forward(tokens)[:, :1], atol=1e-4)


def test_a_batch_of_windows_equals_the_windows_one_by_one() -> None:
    block, tokens = TransformerBlock(tiny_tower().transformer.resblocks[0]), _tokens(5)
    output, mean = block.forward_with_attention(tokens)
    singles = [block.forward_with_attention(window[None]) for window in tokens]
    assert torch.allclose(output, torch.cat([single[0] for single in singles]), atol=1e-5)
    assert torch.allclose(mean, torch.cat([single[1] for single in singles]), atol=1e-6)
