"""The image tower of an open_clip ViT: embedding, blocks with their attention statistics, projection."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.blocks import KeptAttention, Stream, TransformerBlock
from ovss_core.clip.positions import Resampling, resample_positions
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.errors import ModelError
from ovss_core.kernels import use_kernel
from ovss_core.kernels.norms import add_norm, layer_norm


class ImageEncoder:
    """A frozen CLIP image tower, opened up for dense prediction; `timm_tower` opens others.

    Args:
        visual: An `open_clip.transformer.VisionTransformer` with a class token and learned positions.

    Raises:
        ModelError: The tower is no such ViT (a ResNet, a timm tower, attention or average pooling).

    Attributes:
        prefix: Tokens in front of the patches: 1, the class token, or 0 where a tower has none.
    """

    prefix: int = 1

    def __init__(self, visual: Any) -> None:
        _require_plain_vit(visual)
        self._visual = visual.eval().requires_grad_(False)
        self.blocks = [TransformerBlock(block) for block in visual.transformer.resblocks]
        self.patch_size = int(visual.patch_size[0])
        self.base_grid: tuple[int, int] = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        self.width = int(visual.class_embedding.shape[0])
        self.output_dim = int(visual.proj.shape[1])
        self._positions: dict[tuple[tuple[int, int], Resampling], Tensor] = {}
        self._starts: dict[tuple[tuple[int, int], Resampling], Tensor] = {}

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

    def lie_on(self, grid: tuple[int, int]) -> None:
        """Say which grid the patches of tokens lie on that blocks are given from now on.

        Needed where that is not the grid embedded last; positions that are added to the embedding need it nowhere.
        """

    def embed(
        self, windows: Float[Tensor, "windows 3 height width"], resampling: Resampling = "scale"
    ) -> Float[Tensor, "windows tokens channels"]:
        """Return the tokens that enter block 1: patches and class token with positions, after ln_pre."""
        grid, size = self.grid_of((windows.shape[2], windows.shape[3])), self.patch_size
        if use_kernel(windows) and self._visual.conv1.bias is None and not windows.requires_grad:
            return self._embed_on_device(windows, grid, resampling)
        # the convolution's stride is its size, so it is one product; as such it is fast in bfloat16, and exact float32
        cells = windows[..., : grid[0] * size, : grid[1] * size].to(self.dtype)
        cells = cells.unflatten(3, (grid[1], size)).unflatten(2, (grid[0], size))
        cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        patches = F.linear(cells, self._visual.conv1.weight.flatten(1), self._visual.conv1.bias)
        first = self._visual.class_embedding.to(self.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([first, patches], 1) + self._positions_for(grid, resampling)
        return layer_norm(tokens, self._visual.ln_pre)

    def _embed_on_device(self, windows: Tensor, grid: tuple[int, int], resampling: Resampling) -> Tensor:
        """Do as `embed`: a product with a row of zeros for the class token, which comes with the positions."""
        from ovss_core.kernels.pixels_triton import launch_patches

        cells = launch_patches(windows.to(self.dtype), grid, self.patch_size)
        patches = F.linear(cells, self._visual.conv1.weight.flatten(1))
        key = (grid, resampling)
        if key not in self._starts:
            starts = self._positions_for(grid, resampling).clone()
            starts[0] += self._visual.class_embedding.to(self.dtype)
            self._starts[key] = starts
        return add_norm(patches, self._starts[key].expand_as(patches), self._visual.ln_pre)[1]

    def trace(self, windows: Float[Tensor, "windows 3 height width"], request: TraceRequest) -> EncoderTrace:
        """Run blocks 1 to L-1 and keep what `request` names.

        Args:
            windows: Normalized pixels; both sides at least one patch.
        """
        stream = Stream(self.embed(windows, request.resampling))
        grid = self.grid_of((windows.shape[2], windows.shape[3]))
        observed = request.observer.begin() if request.observer else None
        trace = EncoderTrace(grid=grid, tokens=stream.tokens, observed=observed, prefix=self.prefix)
        if request.mean_attention:
            patches = grid[0] * grid[1]
            trace.mean_attention = torch.zeros(
                len(windows), patches, patches, dtype=torch.float32, device=windows.device
            )
        if request.head_attention_sum:
            shape = len(windows), self.blocks[0].heads, *[stream.tokens.shape[1]] * 2
            trace.head_attention_sum = torch.zeros(shape, dtype=torch.float32, device=windows.device)
        if request.hidden_sum:
            trace.hidden_sum = torch.zeros_like(stream.tokens)
        if 0 in request.hidden:
            trace.hidden[0] = stream.tokens
        for layer in range(1, self.depth):
            # a block's last sum is made by the one behind it, and so what is kept of a block is complete there
            summed = trace.hidden_sum if layer - 1 in request.hidden_sum else None
            kept = self._wanted_attention(trace, request, layer)
            before, stream = stream, self.blocks[layer - 1].advance(stream, kept, summed)
            if layer - 1 in request.hidden:
                trace.hidden[layer - 1] = before.tokens
            if kept is not None and kept.mean is not None:
                stream = self._use_attention(trace, request, layer, stream, kept.mean)
            if kept is not None and kept.key is not None:
                trace.keys[layer] = kept.key
            if request.repair:
                stream = Stream(request.repair.after_block(stream.joined(), grid))
        last = self.depth - 1
        trace.tokens = stream.joined()
        if last in request.hidden:
            trace.hidden[last] = trace.tokens
        if last in request.hidden_sum and trace.hidden_sum is not None:
            trace.hidden_sum += trace.tokens
        if trace.mean_attention is not None:
            trace.mean_attention /= last
        return trace

    def _wanted_attention(
        self, trace: EncoderTrace, request: TraceRequest, layer: int
    ) -> KeptAttention | None:
        """Say what one block shall keep of its attention; None keeps nothing."""
        observed = request.observer is not None and request.observer.wants(layer)
        whole = layer in request.attention_statistics or observed
        keys, by_head = layer in request.keys, trace.head_attention_sum
        if not (whole or keys or request.mean_attention or request.head_attention_sum):
            return None
        return KeptAttention(whole, trace.mean_attention, keys=keys, by_head=by_head)

    def _use_attention(
        self, trace: EncoderTrace, request: TraceRequest, layer: int, stream: Stream, attention: Tensor
    ) -> Stream:
        """Keep what is wanted of one block's head-mean attention, and let the observer see it."""
        if layer in request.attention_statistics:
            trace.class_attention[layer] = attention[:, 0, 1:].clone()
            trace.self_attention[layer] = attention.diagonal(dim1=1, dim2=2)[:, 1:].clone()
        if request.observer and request.observer.wants(layer):
            tokens = stream.joined()
            return Stream(request.observer.after_block(trace.observed, layer, tokens, attention, trace.grid))
        return stream

    def project(
        self,
        tokens: Float[Tensor, "windows tokens width"],
        added: Float[Tensor, "windows tokens width"] | None = None,
    ) -> Float[Tensor, "windows tokens features"]:
        """Apply ln_post and the projection into the joint space to tokens (+ added); not normalized."""
        projected: Tensor = add_norm(tokens, added, self._visual.ln_post)[1] @ self._visual.proj
        return projected

    def class_features(
        self, windows: Float[Tensor, "windows 3 height width"], resampling: Resampling = "scale"
    ) -> Float[Tensor, "windows features"]:
        """Return the plain encoder's class-token features, not normalized (as `encode_image`)."""
        stream = Stream(self.embed(windows, resampling))
        for block in self.blocks[:-1]:
            stream = block.advance(stream)
        return self.project(self.blocks[-1].class_token(stream.joined()))[:, 0]

    def _positions_for(self, grid: tuple[int, int], resampling: Resampling) -> Tensor:
        key = (grid, resampling)
        if key not in self._positions:
            table = self._visual.positional_embedding.detach()
            self._positions[key] = resample_positions(table, self.base_grid, grid, resampling).to(self.dtype)
        return self._positions[key]


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
