"""Small seeded random towers, weights and pictures: big enough to have outliers, small enough to be instant."""

from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.weights import ClipModel, load_clip
from ovss_core.config import (
    LabelConfig,
    ModelConfig,
    PurificationConfig,
    RfClipConfig,
    SegmenterConfig,
    WindowConfig,
)
from ovss_core.vocabulary import Vocabulary
from tests.oracles import SlowTower

NAME = "tiny-ViT-8"
"""Patches of 8, a 4 x 4 base grid, 4 blocks of width 32 in 2 heads, 24 dimensions in the joint space."""
WORDS = ["cat", "dog, puppy", "grass", "sky", "road", "sofa"]


@lru_cache(maxsize=1)
def register_tiny_models() -> None:
    """Make the architectures of tests/architectures known to open_clip."""
    open_clip.add_model_config(Path(__file__).parent / "architectures")


def tiny_clip(name: str = NAME, quick_gelu: bool | None = None, lively: bool = True) -> ClipModel:
    """Load a tiny CLIP with seeded random weights; `lively` makes its image tower's attention uneven."""
    clip = _load_tiny_clip(name, quick_gelu)
    copied = replace(clip, model=deepcopy(clip.model))
    if lively:
        enliven(copied.model.visual, 0)
    return copied


@lru_cache(maxsize=8)
def _load_tiny_clip(name: str, quick_gelu: bool | None) -> ClipModel:
    register_tiny_models()
    return load_clip(ModelConfig(name, "random", quick_gelu=quick_gelu))


def tiny_tower(
    *,
    depth: int = 4,
    width: int = 32,
    heads: int = 2,
    patch: int = 8,
    image: int = 32,
    output: int = 24,
    quick_gelu: bool = True,
    layer_scale: float | None = None,
    seed: int = 0,
) -> VisionTransformer:
    """Build an open_clip image tower with seeded weights that make its attention uneven."""
    tower = VisionTransformer(
        image,
        patch,
        width,
        depth,
        heads,
        4.0,
        ls_init_value=layer_scale,
        output_dim=output,
        act_layer=QuickGELU if quick_gelu else nn.GELU,
    )
    enliven(tower, seed)
    return tower.eval().requires_grad_(False)


def tiny_encoder(
    *, depth: int = 4, heads: int = 2, patch: int = 8, image: int = 32, quick_gelu: bool = True, seed: int = 0
) -> ImageEncoder:
    """Wrap a tiny tower."""
    return ImageEncoder(
        tiny_tower(depth=depth, heads=heads, patch=patch, image=image, quick_gelu=quick_gelu, seed=seed)
    )


def enliven(tower: nn.Module, seed: int) -> None:
    """Redraw a tower's weights at a scale where tokens differ and attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(tower.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith(".gamma"):
                continue
            if parameter.ndim >= 2 and "positional" not in name:
                fan_in = parameter[0].numel() if name != "proj" else parameter.shape[0]
                gain = 1.6 if "in_proj" in name else 0.8
                parameter.copy_(gain * drawn * fan_in**-0.5)
            elif "weight" in name:
                parameter.copy_(1 + 0.1 * drawn)
            else:
                parameter.copy_(0.3 * drawn)


def random_windows(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Draw normalized windows with blobs, so that patches differ and yet resemble each other."""
    generator = torch.Generator().manual_seed(1000 * seed + 31 * height + width)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    blobs: Tensor = smooth + 0.2 * torch.randn(count, 3, height, width, generator=generator)
    return blobs


def random_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw an RGB picture of random rectangles, uint8 [height, width, 3]."""
    generator = np.random.default_rng([seed, height, width])
    picture = np.full((height, width, 3), generator.integers(0, 256, 3), np.uint8)
    for _ in range(8):
        y0, y1 = sorted(generator.integers(0, height + 1, 2))
        x0, x1 = sorted(generator.integers(0, width + 1, 2))
        picture[y0:y1, x0:x1] = generator.integers(0, 256, 3)
    noise = generator.integers(-12, 13, picture.shape)
    speckled: np.ndarray = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return speckled


def tiny_config(
    host: str = "sfp",
    purification: PurificationConfig | None = None,
    labels: LabelConfig | None = None,
    window_batch: int = 8,
) -> SegmenterConfig:
    """Configure windows that suit the tiny tower: 32 pixels every 16, images resized to a short side of 48."""
    return SegmenterConfig(
        model=ModelConfig(NAME, "random"),
        host=host,
        # nobody has measured the channels of a random tower
        rfclip=RfClipConfig((3, 17), 1.5) if host == "rfclip" else RfClipConfig(),
        windows=WindowConfig(size=32, stride=16, short_side=48, long_side=160),
        purification=purification or PurificationConfig(crop_size=16),
        labels=labels or LabelConfig(),
        window_batch=window_batch,
    )


def tiny_text(
    lines: list[str], features: int = 24, distractors: int = 20, seed: int = 0
) -> EncodedVocabulary:
    """Draw the text side: random unit rows, the same for a class name and phrase wherever it stands."""
    vocabulary = Vocabulary.from_names(lines)

    def rows(names: list[str]) -> Tensor:
        drawn = [np.random.default_rng([seed, *name.encode()]).normal(size=features) for name in names]
        table = torch.from_numpy(np.array(drawn).reshape(-1, features)).float()
        return nn.functional.normalize(table, dim=-1)

    descriptions = rows([f"a description of {name}" for name in vocabulary.names])
    nulls = rows([f"distractor {number}" for number in range(distractors)])
    return EncodedVocabulary(vocabulary, rows(vocabulary.phrases), descriptions, nulls, "tiny")


def slow_tower(tower: VisionTransformer) -> SlowTower:
    """Take a tower's weights into the loop-written oracle."""
    block = tower.transformer.resblocks[0]
    weights = {key: value.double().numpy() for key, value in tower.state_dict().items()}
    grid = (int(tower.grid_size[0]), int(tower.grid_size[1]))
    quick = isinstance(block.mlp.gelu, QuickGELU)
    return SlowTower(weights, block.attn.num_heads, int(tower.patch_size[0]), grid, quick)


class ParameterTree(nn.Module):
    """A module tree that holds given tensors under their dotted names, as OpenAI's archives do."""

    def __init__(self, tensors: dict[str, Tensor], buffers: dict[str, int]) -> None:
        super().__init__()
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            head, _, rest = key.partition(".")
            if rest:
                parts.setdefault(head, {})[rest] = value
            else:
                self.register_parameter(head, nn.Parameter(value, requires_grad=False))
        for name, part in parts.items():
            self.add_module(name, ParameterTree(part, {}))
        for name, number in buffers.items():
            self.register_buffer(name, torch.tensor(number))

    def forward(self, values: Tensor) -> Tensor:
        return values
