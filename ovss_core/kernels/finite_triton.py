"""The kernel of `engine.finite.sound_windows`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1 << 12


@triton.jit
def sound_kernel(features, attention, sound, numbers, weights, ATTENDS: tl.constexpr, BLOCK: tl.constexpr):
    """Add up a window's squared features and its attention, and say whether the sums are numbers."""
    window = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(0, numbers, BLOCK):
        value = tl.load(features + window * numbers + first + place, mask=first + place < numbers, other=0.0)
        squares += value * value
    total = tl.sum(squares, 0)
    good = (total > 0) & (total < float("inf"))
    if ATTENDS:
        shares = tl.zeros([BLOCK], tl.float32)
        for first in range(0, weights, BLOCK):
            shares += tl.load(
                attention + window * weights + first + place, mask=first + place < weights, other=0.0
            )
        good = good & (tl.abs(tl.sum(shares, 0)) < float("inf"))
    tl.store(sound + window, good.to(tl.int8))


def launch_sound(features: Tensor, attention: Tensor | None) -> Tensor:
    """Run the kernel; see `engine.finite.sound_windows`."""
    windows = len(features)
    features = features.contiguous()
    attended = features if attention is None else attention.contiguous()
    sound = torch.empty(windows, dtype=torch.int8, device=features.device)
    if windows:
        sound_kernel[(windows,)](
            features,
            attended,
            sound,
            features[0].numel(),
            attended[0].numel(),
            ATTENDS=attention is not None,
            BLOCK=_BLOCK,
            num_warps=8,
        )
    return sound.view(torch.bool)
