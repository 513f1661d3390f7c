"""The image towers that open_clip takes from timm, opened up as CLIP's own: SigLIP, SigLIP 2, PE-Core, EVA, MobileCLIP-B.

They differ from CLIP's in three places. Some have no class token; what pools the patches is then a learned query (an
"attention pool"), and a patch alone takes the way of that pool's values: norm, value, projection, feed-forward, as a pool
that looked at this one patch would give it. Some turn queries and keys by their place (rotary positions). And each names
its parts in its own way.
"""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovss_core.clip.blocks import Stream, TransformerBlock
from ovss_core.clip.positions import Resampling, resample_positions
from ovss_core.clip.tower import ImageEncoder
from ovss_core.errors import ModelError
from ovss_core.kernels.norms import add_norm

_BLOCKS = ("Block", "EvaBlock")
_ATTENTIONS = ("Attention", "EvaAttention", "AttentionRope")
_TRUNK_PARTS = ("blocks", "patch_embed", "norm", "num_prefix_tokens", "forward_head")


class RotaryPositions:
    """Turns the queries and keys of patches by their places on the grid of the windows that were embedded last.

    A block is given tokens and not their grid, which their number does not tell (7 x 10 or 10 x 7), so the grid is a
    state here: `TimmEncoder.embed` sets it; who reads a trace later says so by `TimmEncoder.lie_on`.

    Args:
        rope: timm's module.
        prefix: Tokens in front of the patches, which have no place.
        halves: Whether a channel's partner lies half the channels away, or beside it.
    """

    def __init__(self, rope: Any, prefix: int, halves: bool) -> None:
        self._rope, self._prefix, self._halves = rope, prefix, halves
        self._tables: dict[tuple[int, int], Tensor] = {}
        self.grid = (0, 0)

    def turn(
        self, vectors: Float[Tensor, "windows heads tokens depth"]
    ) -> Float[Tensor, "windows heads tokens depth"]:
        """Turn the vectors of patches, with or without the class token in front of them."""
        from timm.layers import apply_rot_embed_cat

        table = self._table().to(vectors.device)
        first = vectors.shape[2] - len(table)
        if first not in (0, self._prefix):
            raise ModelError(
                f"{vectors.shape[2]} tokens do not lie on the grid {self.grid} that was embedded last; read a trace "
                "before the next windows are embedded"
            )
        turned = apply_rot_embed_cat(vectors[:, :, first:], table, half=self._halves).to(vectors.dtype)
        return torch.cat([vectors[:, :, :first], turned], 2)

    def _table(self) -> Float[Tensor, "patches twice_depth"]:
        if self.grid not in self._tables:
            rope = deepcopy(self._rope)
            rope.update_feat_shape(list(self.grid))
            table: Tensor = rope.get_embed()
            self._tables[self.grid] = table.float()
        return self._tables[self.grid]


class TimmBlock(TransformerBlock):
    """A pre-norm block of timm's, by the parts that heads rearrange.

    Args:
        block: A `timm` `Block` or `EvaBlock`.
        positions: Rotary positions of its queries and keys, if any.
    """

    def __init__(self, block: Any, positions: RotaryPositions | None) -> None:
        _require_block(block)
        self._timm, self._attention, self._positions = block, block.attn, positions
        self._block = SimpleNamespace(ln_1=block.norm1, ln_2=block.norm2)
        self.heads = int(block.attn.num_heads)
        self.scale = float(block.attn.head_dim) ** -0.5

    @property
    def scales_layers(self) -> bool:
        """Whether more than one matrix product lies between the heads and the stream."""
        return not isinstance(self._attention.norm, nn.Identity) or self._scale_of(1) is not None

    @property
    def output_bias(self) -> Float[Tensor, " width"]:
        """Bias of the attention's output projection."""
        projection = self._attention.proj
        if projection.bias is not None:
            bias: Tensor = projection.bias
            return bias
        return torch.zeros_like(projection.weight[:, 0])

    def _split(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = self._attention
        if attention.qkv is None:
            parts = [
                self._apart(part(normed)) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
            ]
        else:
            packed = F.linear(normed, attention.qkv.weight, self._packed_bias())
            parts = [self._apart(part) for part in packed.chunk(3, -1)]
        query, key, value = attention.q_norm(parts[0]), attention.k_norm(parts[1]), parts[2]
        if self._positions is not None:
            query, key = self._positions.turn(query), self._positions.turn(key)
        return query, key, value

    def value(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> Float[Tensor, "windows heads tokens depth"]:
        """Return v of ln_1(tokens) alone."""
        normed, attention = self.normalize(tokens), self._attention
        if attention.qkv is None:
            return self._apart(attention.v_proj(normed))
        bias = self._packed_bias()
        own = None if bias is None else bias.chunk(3)[2]
        return self._apart(F.linear(normed, attention.qkv.weight.chunk(3)[2], own))

    def output(
        self, attended: Float[Tensor, "windows heads tokens depth"]
    ) -> Float[Tensor, "windows tokens width"]:
        """Join the heads, normalize them where the tower does, and project."""
        joined = self._attention.norm(attended.transpose(1, 2).flatten(2))
        return self._scaled(1, self._attention.proj(joined))

    def _network(self, normed: Tensor) -> Tensor:
        return self._scaled(2, self._timm.mlp(normed))

    def _apart(self, vectors: Tensor) -> Tensor:
        split: Tensor = vectors.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split

    def _packed_bias(self) -> Tensor | None:
        attention = self._attention
        if getattr(attention, "q_bias", None) is not None:
            return torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        bias: Tensor | None = attention.qkv.bias
        return bias

    def _scale_of(self, branch: int) -> Tensor | None:
        """Return the factors of a branch's channels, under either of timm's names."""
        scale = getattr(self._timm, f"gamma_{branch}", None)
        return (
            scale if scale is not None else getattr(getattr(self._timm, f"ls{branch}", None), "gamma", None)
        )

    def _scaled(self, branch: int, values: Tensor) -> Tensor:
        scale = self._scale_of(branch)
        return values if scale is None else values * scale


class TimmEncoder(ImageEncoder):
    """A frozen image tower of timm's under open_clip's `TimmModel`, opened up for dense prediction.

    Args:
        visual: The `open_clip.timm_model.TimmModel`.

    Raises:
        ModelError: Its trunk is no ViT of patches that can be taken apart.
    """

    def __init__(self, visual: Any) -> None:
        _require_trunk(visual)
        self._visual = visual.eval().requires_grad_(False)
        self._trunk = trunk = visual.trunk
        self.prefix = int(trunk.num_prefix_tokens)
        rope = getattr(trunk, "rope", None)
        halves = bool(getattr(trunk.blocks[0].attn, "rotate_half", False))
        self._rotary = RotaryPositions(rope, self.prefix, halves) if rope is not None else None
        self.blocks = [TimmBlock(block, self._rotary) for block in trunk.blocks]
        size, grid = trunk.patch_embed.patch_size, trunk.patch_embed.grid_size
        self.base_grid = (int(grid[0]), int(grid[1]))
        self.patch_size = _pixels_a_patch(trunk, size)
        self.width = int(trunk.embed_dim)
        self._positions = {}
        with torch.no_grad():
            shape = self.project(torch.zeros(1, 1, self.width, dtype=self.dtype, device=self.device)).shape
        self.output_dim = int(shape[2])

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        dtype: torch.dtype = self._trunk.blocks[0].norm1.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self._trunk.blocks[0].norm1.weight.device
        return device

    def lie_on(self, grid: tuple[int, int]) -> None:
        """Say which grid the patches of tokens lie on that blocks are given from now on."""
        if self._rotary is not None:
            self._rotary.grid = grid

    def embed(
        self, windows: Float[Tensor, "windows 3 height width"], resampling: Resampling = "scale"
    ) -> Float[Tensor, "windows tokens channels"]:
        """Return the tokens that enter block 1: patches with positions, behind the class token where there is one."""
        trunk, size = self._trunk, self.patch_size
        grid = self.grid_of((windows.shape[2], windows.shape[3]))
        self.lie_on(grid)
        patches = self._patches(windows[..., : grid[0] * size, : grid[1] * size].to(self.dtype))
        positions = self._positions_for(grid, resampling) if trunk.pos_embed is not None else None
        if trunk.cls_token is None:
            tokens = patches if positions is None else patches + positions[1:]
        else:
            first = trunk.cls_token.to(self.dtype).expand(len(patches), -1, -1)
            tokens = torch.cat([first, patches], 1)
            tokens = tokens if positions is None else tokens + positions
        normed: Tensor = trunk.norm_pre(tokens)
        return normed

    def _patches(self, pixels: Tensor) -> Float[Tensor, "windows patches channels"]:
        embed = self._trunk.patch_embed
        backbone = getattr(embed, "backbone", None)
        planes = pixels if backbone is None else backbone(pixels)
        planes = planes[-1] if isinstance(planes, list | tuple) else planes
        flat = embed.proj(planes).flatten(2).transpose(1, 2)
        normed: Tensor = embed.norm(flat) if hasattr(embed, "norm") else flat
        return normed

    def project(
        self,
        tokens: Float[Tensor, "windows tokens width"],
        added: Float[Tensor, "windows tokens width"] | None = None,
    ) -> Float[Tensor, "windows tokens features"]:
        """Bring tokens (+ added) into the joint space, each as if the tower pooled it alone; not normalized."""
        normed = add_norm(tokens, added, self._trunk.norm)[1]
        pool = self._trunk.attn_pool
        projected: Tensor = self._joint(normed if pool is None else _pooled_alone(pool, normed))
        return projected

    def class_features(
        self, windows: Float[Tensor, "windows 3 height width"], resampling: Resampling = "scale"
    ) -> Float[Tensor, "windows features"]:
        """Return the tower's own embedding of each window, not normalized (as `encode_image`)."""
        stream = Stream(self.embed(windows, resampling))
        for block in self.blocks:
            stream = block.advance(stream)
        pooled = self._trunk.pool(self._trunk.norm(stream.joined()))
        features: Tensor = self._joint(pooled)
        return features

    def _joint(self, pooled: Tensor) -> Tensor:
        trunk = self._trunk
        joint: Tensor = self._visual.head(trunk.head(trunk.fc_norm(pooled)))
        return joint

    def _positions_for(self, grid: tuple[int, int], resampling: Resampling) -> Tensor:
        """Return the table for a grid with a row for the class token first, zeros where there is none."""
        key = (grid, resampling)
        if key not in self._positions:
            table = self._trunk.pos_embed.detach()[0]
            patches = self.base_grid[0] * self.base_grid[1]
            if len(table) == patches:  # the class token has no position
                table = torch.cat([torch.zeros_like(table[:1]), table])
            self._positions[key] = resample_positions(table, self.base_grid, grid, resampling).to(self.dtype)
        return self._positions[key]


def open_tower(visual: Any) -> ImageEncoder:
    """Open an open_clip image tower, CLIP's own or one of timm's.

    Raises:
        ModelError: It cannot be taken apart.
    """
    return TimmEncoder(visual) if hasattr(visual, "trunk") else ImageEncoder(visual)


def _pooled_alone(pool: Any, normed: Float[Tensor, "windows tokens width"]) -> Tensor:
    """Give each token what the attention pool makes of it where it is all that the pool sees: its value, projected."""
    weight = pool.kv.weight.chunk(2)[1]
    bias = None if pool.kv.bias is None else pool.kv.bias.chunk(2)[1]
    pooled: Tensor = pool.proj(F.linear(normed, weight, bias))
    return pooled if pool.mlp is None else pooled + pool.mlp(pool.norm(pooled))


def _pixels_a_patch(trunk: Any, size: tuple[int, int]) -> int:
    """Return the side of a patch in pixels; behind a convolutional stem a patch is a cell of the stem's."""
    if getattr(trunk.patch_embed, "backbone", None) is None:
        return int(size[0])
    height: int = trunk.patch_embed.img_size[0] // trunk.patch_embed.grid_size[0]
    return height


def _require_trunk(visual: Any) -> None:
    trunk = visual.trunk
    kind = type(trunk).__name__
    missing = [name for name in _TRUNK_PARTS if not hasattr(trunk, name)]
    if missing:
        raise ModelError(
            f"the image tower is timm's {kind}, which has no {', '.join(missing)}; choose a ViT such as ViT-B-16, "
            "ViT-B-16-SigLIP2, PE-Core-B-16 or EVA02-B-16"
        )
    if getattr(trunk, "attn_pool", None) is None and trunk.global_pool != "token":
        raise ModelError(
            f"the image tower pools by {trunk.global_pool!r}, neither by a class token nor by a learned query; choose "
            "another model such as ViT-B-16"
        )
    pool = getattr(trunk, "attn_pool", None)
    odd = [
        what
        for what, found in (
            (f"{trunk.num_prefix_tokens} tokens before the patches", trunk.num_prefix_tokens > 1),
            ("a pool with positions of its own", pool is not None and pool.pos_embed is not None),
            ("rotary positions that differ by block", getattr(trunk, "rope_mixed", False)),
            ("a single block", len(trunk.blocks) < 2),
            ("patches that are not square", len(set(trunk.patch_embed.patch_size)) > 1),
        )
        if found
    ]
    if odd:
        raise ModelError(
            f"the image tower, timm's {kind}, has {odd[0]}, which ovss cannot take apart; choose a plain ViT"
        )


def _require_block(block: Any) -> None:
    kinds = type(block).__name__, type(block.attn).__name__
    attention = block.attn
    grouped = getattr(attention, "num_kv_groups", 1) != 1
    if kinds[0] not in _BLOCKS or kinds[1] not in _ATTENTIONS or grouped or attention.gate is not None:
        raise ModelError(
            f"the image tower's blocks ({kinds[0]} with {kinds[1]}) differ from CLIP's in more than names; choose a plain ViT"
        )
