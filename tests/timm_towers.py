"""Tiny timm towers of the families that ovss opens, known to timm and to open_clip by names of those families."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import open_clip
import torch
from timm.layers import LayerNorm
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import nn

from ovss_core.clip.weights import ClipModel, load_clip
from ovss_core.config import ModelConfig
from tests.tiny import enliven, register_tiny_models

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
FEATURES = 32
SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "norm_layer": partial(LayerNorm, eps=1e-5),
}
TOWERS = {
    "tiny-pooled": ("vit_tiny_patch8_siglip_32", "map", "none"),
    "tiny-pe": ("vit_pe_core_tiny_patch8_32", "map", None),
    "tiny-pe-without-class-token": ("vit_pe_core_gigantic_patch8_32", "map", None),
    "tiny-eva": ("eva02_base_patch8_clip_32", "token", None),
    "tiny-mobileclip": ("vit_tiny_mci_32", "token", None),
    "tiny-clip": ("vit_tiny_patch8_clip_32", "token", None),
}
"""open_clip's names, timm's, how the tower pools, and the projection that open_clip adds."""
WITHOUT_CLASS_TOKEN = ("tiny-pooled", "tiny-pe-without-class-token")
_ROTARY: dict[str, Any] = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}
_PE: dict[str, Any] = {
    **{
        "attn_type": "rope",
        "use_pre_transformer_norm": True,
        "rope_grid_offset": 1.0,
        "rope_grid_indexing": "xy",
    },
    **{"attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 2.0},
}


def _siglip(**given: Any) -> nn.Module:
    tower: nn.Module = VisionTransformer(class_token=False, **{"global_pool": "map", **given})
    return tower


def _pe(**given: Any) -> nn.Module:
    tower: nn.Module = Eva(**_PE, **_ROTARY, **given)
    return tower


def _pe_without(**given: Any) -> nn.Module:
    tower: nn.Module = Eva(class_token=False, **{"global_pool": "map", **given}, **_PE, **_ROTARY)
    return tower


def _eva(**given: Any) -> nn.Module:
    parts: dict[str, Any] = {
        "qkv_fused": False,
        "swiglu_mlp": True,
        "scale_mlp": True,
        "scale_attn_inner": True,
    }
    tower: nn.Module = Eva(mlp_ratio=4 * 2 / 3, init_values=0.5, **parts, **_ROTARY, **given)
    return tower


def _mobileclip(**given: Any) -> nn.Module:
    stem = ConvStem(
        channels=(8, 8, 32), stride=(2, 2, 2), kernel_size=(2, 2, 2), padding=0, in_chans=3, act_layer=nn.GELU
    )
    given["patch_size"] = 1
    tower: nn.Module = VisionTransformer(
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False), no_embed_class=True, **given
    )
    return tower


def _clip(**given: Any) -> nn.Module:
    tower: nn.Module = VisionTransformer(pre_norm=True, init_values=0.7, **given)
    return tower


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "vit_tiny_patch8_siglip_32": _siglip,
    "vit_pe_core_tiny_patch8_32": _pe,
    "vit_pe_core_gigantic_patch8_32": _pe_without,
    "eva02_base_patch8_clip_32": _eva,
    "vit_tiny_mci_32": _mobileclip,
    "vit_tiny_patch8_clip_32": _clip,
}


@lru_cache(maxsize=1)
def register_timm_towers() -> None:
    """Make the towers known, under the names above."""
    register_tiny_models()
    for name, build in _BUILDERS.items():

        def make(
            pretrained: bool = False,
            pretrained_cfg: object = None,
            pretrained_cfg_overlay: object = None,
            cache_dir: object = None,
            *,
            build: Callable[..., nn.Module] = build,
            **given: Any,
        ) -> nn.Module:
            return build(**SIZES, **given)

        make.__name__ = name
        register_model(make)
    for name, (tower, pool, projection) in TOWERS.items():
        vision = {"timm_model_name": tower, "timm_pool": pool, "timm_proj": projection, "image_size": 32}
        config = {"embed_dim": FEATURES, "vision_cfg": vision, "text_cfg": TEXT}
        open_clip.factory._MODEL_CONFIGS[name] = config


def timm_clip(name: str) -> ClipModel:
    """Load a CLIP with a tiny timm tower whose weights make its attention uneven."""
    register_timm_towers()
    clip = load_clip(ModelConfig(name, "random"))
    enliven(clip.model.visual, 0)
    with torch.no_grad():
        for key, parameter in clip.model.visual.named_parameters():
            if key.endswith("latent"):  # a learned query far from all keys pools evenly
                parameter.mul_(3)
    return clip
