"""corrclip: values gathered inside regions by a second tower's q + k, and two more branches (CorrCLIP, Zhang 2025)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest, WindowRegions
from ovss_core.config import CorrClipConfig
from ovss_core.dense_heads.base import DenseHead, HeadOptions
from ovss_core.dense_heads.proxy_attention import gather_values, parts, softmax_of_allowed
from ovss_core.dense_heads.region_scope import merge_regions, nearest_on_grid, visible_patches


class CorrClipHead(DenseHead):
    """The main branch, the same attention on the middle blocks, and the regions' own class tokens; no residual."""

    name = "corrclip"
    needs_proxy = True
    can_scope = True

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        given = options.settings
        self.settings = given if isinstance(given, CorrClipConfig) else CorrClipConfig()

    def request(self, depth: int) -> TraceRequest:
        """Ask for the second tower's q + k, the middle blocks, and, for the regions' tokens, every block's input."""
        hidden = set(self._middle(depth)) if self.settings.spatial else set[int]()
        if self.options.scoped and self.settings.semantic_weight:
            hidden |= set(range(depth))
        return TraceRequest(hidden=frozenset(hidden), proxy=frozenset({"query_plus_key"}))

    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Add the branches, each through ln_post and the projection."""
        vectors = trace.proxy_features().vectors["query_plus_key"]
        unit = F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)
        regions = self._merged(unit, trace.regions)
        features = self._gathered(encoder, trace, unit, regions)
        if self.settings.semantic_weight:
            tokens = encoder.project(self._region_tokens(encoder, trace, regions))
            features = features + self.settings.semantic_weight * tokens
        return features

    def _merged(
        self, unit: Float[Tensor, "windows patches width"], regions: WindowRegions | None
    ) -> WindowRegions:
        if regions is None:
            return WindowRegions(torch.zeros(unit.shape[:2], dtype=torch.int64, device=unit.device), 0)
        ids = merge_regions(unit, regions.ids, regions.count, self.settings.merge_distance)
        return WindowRegions(ids, regions.count)

    def _gathered(
        self, encoder: ImageEncoder, trace: EncoderTrace, unit: Tensor, regions: WindowRegions
    ) -> Float[Tensor, "windows patches features"]:
        """Return the main branch and, where it is wanted, the spatial one."""
        grids, streams = (trace.grid, trace.proxy_features().grid), [trace.tokens]
        if self.settings.spatial:
            middle = [trace.hidden[layer] for layer in self._middle(encoder.depth)]
            streams.append(torch.stack(middle).mean(0))
        found = []
        for part in parts(*unit.shape[:2]):
            attention = correlation_attention(unit[part], regions.ids[part], self.settings.gain)
            gathered = [
                encoder.project(gather_values(encoder.blocks[-1], stream[part], attention, grids))
                for stream in streams
            ]
            found.append(torch.stack(gathered).sum(0))
        return torch.cat(found)

    def _region_tokens(
        self, encoder: ImageEncoder, trace: EncoderTrace, regions: WindowRegions
    ) -> Float[Tensor, "windows patches width"]:
        """Return each patch's copy of the class token that saw its region only; without regions the class token."""
        if not regions.count:
            token = encoder.blocks[-1].class_token(trace.tokens)
            return token.expand(-1, regions.ids.shape[1], -1)
        own, fine = trace.grid, trace.proxy_features().grid
        coarse = nearest_on_grid(regions.ids, fine, own)
        tokens = region_class_tokens(encoder, trace, coarse, regions.count)
        owner = nearest_on_grid(coarse, own, fine)
        return tokens.gather(1, owner[:, :, None].expand(-1, -1, tokens.shape[2]))

    def _middle(self, depth: int) -> range:
        """Blocks whose mean the spatial branch reads."""
        start = self.settings.spatial_start or depth // 2
        return range(min(start, depth - 1), max(depth - 1, min(start, depth - 1) + 1))


def correlation_attention(
    unit: Float[Tensor, "windows patches width"], regions: Int[Tensor, "windows patches"], gain: float
) -> Float[Tensor, "windows patches patches"]:
    """Return softmax(gain S) over the patches that each patch may see; a patch always sees itself."""
    similarity = unit @ unit.mT
    return softmax_of_allowed(gain * similarity, ~visible_patches(similarity, regions))


def region_class_tokens(
    encoder: ImageEncoder, trace: EncoderTrace, regions: Int[Tensor, "windows patches"], count: int
) -> Float[Tensor, "windows regions width"]:
    """Carry a copy of the class token a region through all blocks; the ordinary tokens do not see it.

    In every block, the last too, a copy attends to the class token and to the patches of its region, not to itself.

    Args:
        trace: Holds the input of every block.
        regions: Region of each patch on CLIP's grid, 0 (no region, which has a copy as well) to `count`.
        count: The largest number of a region.
    """
    numbers = torch.arange(count + 1, device=regions.device)
    inside = regions[:, None, :] == numbers[None, :, None]
    seen = torch.cat([inside.new_ones(*inside.shape[:2], 1), inside], 2)[:, None]
    tokens = trace.hidden[0][:, :1].expand(-1, count + 1, -1)
    for layer, block in enumerate(encoder.blocks):
        query = block.query_key_value(tokens)[0]
        _, key, value = block.query_key_value(trace.hidden[layer])
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        tokens = tokens + block.output(attended)
        tokens = tokens + block.feed_forward(tokens)
    return tokens
