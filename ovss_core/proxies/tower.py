"""A second image tower, a ViT of timm's, driven block by block, so that positions are the original's on any grid."""

import math
from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovss_core.clip.trace import ProxyFeatures, ProxyVectors
from ovss_core.errors import ModelError
from ovss_core.images.windows import PatchGrid
from ovss_core.proxies.positions import fit_positions
from ovss_core.proxy_families.registry import Positions

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ProxyTower:
    """A frozen second tower.

    Args:
        model: A `VisionTransformer` or `Eva` of timm.
        positions: How its positions are fitted to a grid.
        scale: Times as many pixels as CLIP gets of the same window, a whole number that divides the patch size.

    Raises:
        ModelError: The model is built otherwise, or the scale does not divide its patches.

    Attributes:
        patch_size: Side of a patch, pixels of the tower's own windows.
        cells: Its patches on CLIP's windows.
    """

    def __init__(self, model: Any, positions: Positions, scale: int = 1) -> None:
        _require_driveable(model)
        self._model = model.eval().requires_grad_(False)
        self._positions = positions
        self.scale = scale
        self.patch_size = int(model.patch_embed.patch_size[0])
        if self.patch_size % scale:
            raise ModelError(
                f"proxy.scale {scale} does not divide the second tower's patches of {self.patch_size} pixels; give 1, 2 "
                "or another divisor"
            )
        self.cells = PatchGrid(self.patch_size // scale)
        settings = getattr(model, "pretrained_cfg", None) or {}
        self.normalization = (
            tuple(settings.get("mean", IMAGENET_MEAN)),
            tuple(settings.get("std", IMAGENET_STD)),
        )
        self._fitted: dict[tuple[int, int], Tensor] = {}
        self._rotations: dict[tuple[int, int], Tensor] = {}

    def to(self, device: torch.device, dtype: torch.dtype) -> "ProxyTower":
        """Move the tower; returns itself."""
        self._model.to(device, dtype)
        self._fitted, self._rotations = {}, {}
        return self

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self._model.num_prefix_tokens)

    def features(
        self, windows: Float[Tensor, "windows 3 height width"], wanted: Collection[ProxyVectors]
    ) -> ProxyFeatures:
        """Run the tower and keep the vectors that are wanted.

        Args:
            windows: Pixels normalized by `normalization`, `scale` times as many a side as CLIP's windows have. What is
                left over at the lower and right edge fills no patch and is not seen.
            wanted: Which vectors; the last block runs only for "tokens".
        """
        size = self.patch_size
        grid = windows.shape[2] // size, windows.shape[3] // size
        cut = windows[:, :, : grid[0] * size, : grid[1] * size].to(self._model.patch_embed.proj.weight.dtype)
        tokens, rotation = self._embed(cut, grid), self._rotation(grid, cut)
        for block in self._model.blocks[:-1]:
            tokens = _run(block, tokens, rotation)
        vectors: dict[ProxyVectors, Tensor] = {}
        last = self._model.blocks[-1]
        if "query_plus_key" in wanted:
            vectors["query_plus_key"] = query_plus_key(last, tokens)[:, self.prefix :]
        if "tokens" in wanted:
            vectors["tokens"] = self._model.norm(_run(last, tokens, rotation))[:, self.prefix :]
        return ProxyFeatures(grid, vectors)

    def _embed(self, windows: Tensor, grid: tuple[int, int]) -> Tensor:
        model = self._model
        patches = model.patch_embed.proj(windows).flatten(2).mT
        prefix = [
            token.expand(len(windows), -1, -1)
            for token in (model.cls_token, model.reg_token)
            if token is not None
        ]
        if model.pos_embed is None:
            tokens = torch.cat([*prefix, patches], 1)
        elif model.no_embed_class:
            tokens = torch.cat([*prefix, patches + self._table(grid, 0)], 1)
        else:
            tokens = torch.cat([*prefix, patches], 1) + self._table(grid, self.prefix)
        embedded: Tensor = model.norm_pre(tokens)
        return embedded

    def _table(self, grid: tuple[int, int], prefix: int) -> Tensor:
        if grid not in self._fitted:
            table = self._model.pos_embed[0]
            side = math.isqrt(len(table) - prefix)
            self._fitted[grid] = fit_positions(table, prefix, (side, side), grid, self._positions)
        return self._fitted[grid]

    def _rotation(self, grid: tuple[int, int], like: Tensor) -> Tensor | None:
        rope = getattr(self._model, "rope", None)
        if rope is None:
            return None
        if grid not in self._rotations:
            self._rotations[grid] = rope.get_embed(shape=list(grid)).to(like.device)
        return self._rotations[grid]


def query_plus_key(
    block: Any, tokens: Float[Tensor, "windows tokens width"]
) -> Float[Tensor, "windows tokens width"]:
    """Return q + k of a block of timm's, heads side by side, biases included and before any rotation."""
    attention, normed = block.attn, block.norm1(tokens)
    if attention.qkv is None:
        summed: Tensor = attention.q_proj(normed) + attention.k_proj(normed)
        return summed
    packed = attention.qkv(normed)
    query, key, _ = packed.chunk(3, -1)
    if getattr(attention, "q_bias", None) is not None:
        query, key = query + attention.q_bias, key + attention.k_bias
    total: Tensor = query + key
    return total


def _run(block: Any, tokens: Tensor, rotation: Tensor | None) -> Tensor:
    result: Tensor = block(tokens) if rotation is None else block(tokens, rope=rotation)
    return result


def _require_driveable(model: Any) -> None:
    parts = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre", "blocks", "norm")
    missing = [name for name in parts if not hasattr(model, name)]
    if missing:
        raise ModelError(
            f"the second tower is a {type(model).__name__}, which has no {', '.join(missing)}; give a plain ViT"
        )
    embed, attention = model.patch_embed, model.blocks[0].attn
    plain = isinstance(attention.q_norm, nn.Identity) and isinstance(attention.k_norm, nn.Identity)
    if embed.patch_size[0] != embed.patch_size[1] or not isinstance(embed.norm, nn.Identity) or not plain:
        raise ModelError(
            f"the second tower's patches or queries ({type(model).__name__}) differ from a plain ViT's; give another"
        )
