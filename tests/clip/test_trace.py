import pytest
import torch

from ovss_core.clip.trace import TraceRequest, merge_requests
from ovss_core.errors import ConfigError
from ovss_core.feature_purification.channels import ChannelRepair
from ovss_core.feature_purification.mitigation import OutlierMitigation
from tests.tiny import random_windows, tiny_encoder


def test_a_bare_trace_keeps_nothing_but_the_last_tokens() -> None:
    trace = tiny_encoder().trace(random_windows(2, 32, 40), TraceRequest())
    assert trace.grid == (4, 5)
    assert trace.tokens.shape == (2, 21, 32)
    assert (trace.hidden, trace.class_attention, trace.self_attention, trace.keys) == ({}, {}, {}, {})
    assert trace.head_attention_sum is None
    assert trace.hidden_sum is trace.mean_attention is trace.observed is None


def test_a_trace_keeps_exactly_the_layers_that_were_asked_for() -> None:
    request = TraceRequest(
        hidden=frozenset({0, 2}), hidden_sum=frozenset({1, 2}), attention_statistics=frozenset({3})
    )
    trace = tiny_encoder().trace(random_windows(1, 32, 32), request)
    assert set(trace.hidden) == {0, 2}
    assert set(trace.class_attention) == set(trace.self_attention) == {3}
    assert trace.mean_attention is None


def test_the_sum_of_layers_is_the_sum_of_the_layers() -> None:
    encoder, windows = tiny_encoder(), random_windows(2, 32, 32)
    single = encoder.trace(windows, TraceRequest(hidden=frozenset({1, 2, 3})))
    summed = encoder.trace(windows, TraceRequest(hidden_sum=frozenset({1, 2, 3}))).hidden_sum
    assert summed is not None
    assert torch.allclose(summed, single.hidden[1] + single.hidden[2] + single.hidden[3], atol=1e-5)


def test_merged_requests_serve_each_request_what_it_gets_alone() -> None:
    first = TraceRequest(hidden=frozenset({1}), attention_statistics=frozenset({2}))
    second = TraceRequest(hidden=frozenset({3}), hidden_sum=frozenset({1, 2}), mean_attention=True)
    encoder, windows = tiny_encoder(), random_windows(2, 32, 48)
    both = encoder.trace(windows, merge_requests([first, second]))
    alone, other = encoder.trace(windows, first), encoder.trace(windows, second)
    assert torch.allclose(both.hidden[1], alone.hidden[1], atol=1e-4)
    assert torch.allclose(both.class_attention[2], alone.class_attention[2], atol=1e-6)
    assert both.hidden_sum is not None
    assert other.hidden_sum is not None
    assert torch.allclose(both.hidden_sum, other.hidden_sum, atol=1e-4)
    assert both.mean_attention is not None
    assert other.mean_attention is not None
    assert torch.allclose(both.mean_attention, other.mean_attention, atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        TraceRequest(observer=OutlierMitigation(1.0)),
        TraceRequest(resampling="antialias"),
        TraceRequest(observer=OutlierMitigation(1.0, repair=False, integrate_from=1)),
        TraceRequest(hidden_sum=frozenset({2})),
        TraceRequest(repair=ChannelRepair((1,))),
    ],
)
def test_requests_that_need_different_blocks_are_not_merged(other: TraceRequest) -> None:
    with pytest.raises(ConfigError, match="one by one"):
        merge_requests([TraceRequest(hidden_sum=frozenset({1})), other])


@pytest.mark.parametrize("mean", [False, True])
def test_the_sum_of_the_heads_attention_averages_to_what_is_kept_of_their_mean(mean: bool) -> None:
    encoder, windows = tiny_encoder(), random_windows(2, 32, 40)
    by_head = encoder.trace(windows, TraceRequest(head_attention_sum=True, mean_attention=mean))
    other = encoder.trace(windows, TraceRequest(mean_attention=True)).mean_attention
    assert by_head.head_attention_sum is not None
    assert other is not None
    assert torch.allclose(by_head.head_attention_sum.mean(1)[:, 1:, 1:] / 3, other, atol=1e-5)
    if mean:
        assert by_head.mean_attention is not None
        assert torch.allclose(by_head.mean_attention, other, atol=1e-5)
