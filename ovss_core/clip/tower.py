"""The image tower of an open_clip ViT: embedding, blocks with their attention statistics, projection."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.positions import Resampling, resample_positions
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.errors import ModelError


class ImageEncoder:
    """A frozen CLIP image tower, opened up for dense prediction.

    Args:
        visual: An `open_clip.transformer.VisionTransformer` with a class token and learned positions.

    Raises:
        ModelError: The tower is no such ViT (a ResNet, a timm tower, attention or average pooling).
    """

    def __init__(self, visual: Any) -> None:
        _require_plain_vit(visual)
        self._visual = visual.eval().requires_grad_(False)
        self.blocks = [TransformerBlock(block) for block in visual.transformer.resblocks]
        self.patch_size = int(visual.patch_size[0])
        self.base_grid: tuple[int, int] = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        self.width = int(visual.class_embedding.shape[0])
        self.output_dim = int(visual.proj.shape[1])
        self._positions: dict[tuple[tuple[int, int], Resampling], Tensor] = {}

    @property
    def depth(self) -> int:
        """Number of blocks, L."""
        return len(self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        dtype: torch.dtype = self._visual.conv1.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self._visual.conv1.weight.device
        return device

    def grid_of(self, window_size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of patches of a window of `window_size` (height, width) pixels."""
        return window_size[0] // self.patch_size, window_size[1] // self.patch_size

    def embed(
        self, windows: Float[Tensor, "windows 3 height width"], resampling: Resampling = "scale"
    ) -> Float[Tensor, "windows tokens channels"]:
        """Return the tokens that enter block 1: patches and class token with positions, after ln_pre."""
        grid, size = self.grid_of((windows.shape[2], windows.shape[3])), self.patch_size
        # the convolution's stride is its size, so it is one product; as such it is fast in bfloat16, and exact float32
        cells = windows[..., : grid[0] * size, : grid[1] * size].to(self.dtype)
        cells = cells.unflatten(3, (grid[1], size)).unflatten(2, (grid[0], size))
        cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        patches = F.linear(cells, self._visual.conv1.weight.flatten(1), self._visual.conv1.bias)
        first = self._visual.class_embedding.to(self.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([first, patches], 1) + self._positions_for(grid, resampling)
        embedded: Tensor = self._visual.ln_pre(tokens)
        return embedded

    def trace(self, windows: Float[Tensor, "windows 3 height width"], request: TraceRequest) -> EncoderTrace:
        """Run blocks 1 to L-1 and keep what `request` names.

        Args:
            windows: Normalized pixels; both sides at least one patch.
        """
        tokens = self.embed(windows, request.resampling)
        grid = self.grid_of((windows.shape[2], windows.shape[3]))
        observed = request.observer.begin() if request.observer else None
        trace = EncoderTrace(grid=grid, tokens=tokens, observed=observed)
        if 0 in request.hidden:
            trace.hidden[0] = tokens
        for layer in range(1, self.depth):
            tokens = self._run_block(trace, request, layer, tokens)
            if request.repair:
                tokens = request.repair.after_block(tokens, grid)
            if layer in request.hidden:
                trace.hidden[layer] = tokens
            if layer in request.hidden_sum:
                trace.hidden_sum = tokens if trace.hidden_sum is None else trace.hidden_sum + tokens
        if trace.mean_attention is not None:
            trace.mean_attention /= self.depth - 1
        trace.tokens = tokens
        return trace

    def _run_block(self, trace: EncoderTrace, request: TraceRequest, layer: int, tokens: Tensor) -> Tensor:
        """Run one block in the cheapest way that leaves what is wanted of it."""
        block, before = self.blocks[layer - 1], tokens
        if request.head_attention_sum:
            tokens, by_head = block.forward_with_head_attention(before)
            if _needs_attention(request, layer):
                tokens = self._use_attention(trace, request, layer, tokens, by_head.mean(1))
            total = trace.head_attention_sum
            trace.head_attention_sum = by_head if total is None else total.add_(by_head)
        elif _needs_attention(request, layer):
            tokens, attention = block.forward_with_attention(before)
            tokens = self._use_attention(trace, request, layer, tokens, attention)
        elif layer in request.keys:
            tokens, trace.keys[layer] = block.forward_with_keys(before)
        else:
            tokens = block.forward(before)
        if layer in request.keys and layer not in trace.keys:
            trace.keys[layer] = block.query_key_value(before)[1].clone()
        return tokens

    def _use_attention(
        self, trace: EncoderTrace, request: TraceRequest, layer: int, tokens: Tensor, attention: Tensor
    ) -> Tensor:
        """Keep what is wanted of one block's head-mean attention, and let the observer see it."""
        if layer in request.attention_statistics:
            trace.class_attention[layer] = attention[:, 0, 1:].clone()
            trace.self_attention[layer] = attention.diagonal(dim1=1, dim2=2)[:, 1:].clone()
        if request.mean_attention:
            patches = attention[:, 1:, 1:]
            mean = trace.mean_attention
            trace.mean_attention = patches.clone() if mean is None else mean.add_(patches)
        if request.observer and request.observer.wants(layer):
            tokens = request.observer.after_block(trace.observed, layer, tokens, attention, trace.grid)
        return tokens

    def project(
        self, tokens: Float[Tensor, "windows tokens width"]
    ) -> Float[Tensor, "windows tokens features"]:
        """Apply ln_post and the projection into the joint space; not normalized."""
        projected: Tensor = self._visual.ln_post(tokens) @ self._visual.proj
        return projected

    def class_features(
        self, windows: Float[Tensor, "windows 3 height width"], resampling: Resampling = "scale"
    ) -> Float[Tensor, "windows features"]:
        """Return the plain encoder's class-token features, not normalized (as `encode_image`)."""
        tokens = self.embed(windows, resampling)
        for block in self.blocks[:-1]:
            tokens = block.forward(tokens)
        return self.project(self.blocks[-1].class_token(tokens))[:, 0]

    def _positions_for(self, grid: tuple[int, int], resampling: Resampling) -> Tensor:
        key = (grid, resampling)
        if key not in self._positions:
            table = self._visual.positional_embedding.detach()
            self._positions[key] = resample_positions(table, self.base_grid, grid, resampling).to(self.dtype)
        return self._positions[key]


def _needs_attention(request: TraceRequest, layer: int) -> bool:
    observed = request.observer is not None and request.observer.wants(layer)
    return request.mean_attention or layer in request.attention_statistics or observed


def _require_plain_vit(visual: Any) -> None:
    kind = type(visual).__name__
    missing = [
        name
        for name in ("class_embedding", "positional_embedding", "transformer", "ln_post")
        if not hasattr(visual, name)
    ]
    if missing:
        raise ModelError(
            f"the image tower is a {kind}, which has no {', '.join(missing)}; SFP and FreeCP need a ViT with a "
            "class token: choose an open_clip model such as ViT-B-16, ViT-B-32 or ViT-L-14"
        )
    if getattr(visual, "attn_pool", None) is not None or getattr(visual, "pool_type", "tok") != "tok":
        raise ModelError(
            f"the image tower pools by {getattr(visual, 'pool_type', 'attention')!r}, not by its class token; "
            "choose an open_clip model such as ViT-B-16 or ViT-L-14"
        )
    block = visual.transformer.resblocks[0]
    if (
        not isinstance(block.attn, torch.nn.MultiheadAttention)
        or block.attn.in_proj_weight is None
        or visual.proj is None
    ):
        raise ModelError(
            f"the image tower's blocks ({type(block).__name__}) differ from CLIP's; choose a plain ViT"
        )
    if len(visual.transformer.resblocks) < 2:
        raise ModelError(
            "the image tower has a single block; dense heads need one below the last: choose a ViT"
        )
    if visual.patch_size[0] != visual.patch_size[1]:
        raise ModelError(f"patches of {visual.patch_size} are not square; choose a model with square patches")
