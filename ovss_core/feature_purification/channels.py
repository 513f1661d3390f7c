"""Patches that a few over-activated channels dominate, and their repair by their surroundings (RF-CLIP, AAAI 2026)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.errors import ConfigError


@dataclass(frozen=True)
class ChannelRepair:
    """A `TokenRepair`: what a block gives to a distracted patch is mixed with the mean around it.

    Attributes:
        channels: The over-activated channels of the checkpoint; without any nothing is changed.
        threshold: A patch is distracted when one of them holds more than this many times an equal share.
        share: Share of the mean around it; the patch keeps the rest.
    """

    channels: tuple[int, ...]
    threshold: float = 5.0
    share: float = 0.4

    def after_block(
        self, tokens: Float[Tensor, "windows tokens width"], grid: tuple[int, int]
    ) -> Float[Tensor, "windows tokens width"]:
        """Repair the distracted patches; the class token, always first, stays.

        Raises:
            ConfigError: The tower has no such channel.
        """
        if not self.channels:
            return tokens
        width = tokens.shape[2]
        if max(self.channels) >= width:
            raise ConfigError(
                f"channel {max(self.channels)} is to be watched, but the tower has {width}: give channels from 0 to "
                f"{width - 1}, such as those that ovss channels finds"
            )
        patches = tokens[:, 1:]
        mixed = torch.lerp(patches, box_mean(patches, grid), self.share)
        repaired = torch.where(self.distracted(patches)[..., None], mixed, patches)
        return torch.cat([tokens[:, :1], repaired], 1)

    def distracted(self, patches: Float[Tensor, "windows patches width"]) -> Bool[Tensor, "windows patches"]:
        """Tell which patches one of the channels dominates."""
        watched = channel_shares(patches)[..., _places(self.channels, patches.device)]
        return watched.amax(2) > self.threshold / patches.shape[2]


def channel_shares(
    patches: Float[Tensor, "windows patches width"],
) -> Float[Tensor, "windows patches width"]:
    """Return each channel's share of a patch, counted from the patch's smallest channel; float32, sums to 1."""
    raised = patches.float() - patches.float().amin(2, keepdim=True)
    return raised / raised.sum(2, keepdim=True)


def box_mean(
    patches: Float[Tensor, "windows patches width"], grid: tuple[int, int]
) -> Float[Tensor, "windows patches width"]:
    """Return the mean of the 3 x 3 patches around each, itself among them; beyond the border is zero, and counts."""
    lattice = patches.unflatten(1, grid).permute(0, 3, 1, 2)
    mean = F.avg_pool2d(lattice, 3, stride=1, padding=1, count_include_pad=True)
    return mean.permute(0, 2, 3, 1).flatten(1, 2)


@lru_cache(maxsize=32)
def _places(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """Keep the list where it is used: bringing it there makes the CPU wait."""
    with torch.inference_mode(False):
        return torch.tensor(channels).to(device)
