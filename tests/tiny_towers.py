"""Small second towers under names of timm's: seeded random weights, one for each way positions are fitted."""

from typing import Any

import pytest
import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ovss_core.proxies import loading
from ovss_core.proxies.tower import ProxyTower
from ovss_core.proxy_families import registry
from ovss_core.proxy_families.registry import Positions, TowerFamily

__all__: list[str] = []
DINO, REGISTERS, ROTARY, RADIO = (
    "vit_test_patch8_56.dino",
    "vit_test_patch14_reg4.dinov2",
    "vit_test_patch16_rotary.dinov3",
    "vit_test_patch16_radio.radio",
)
POSITIONS: dict[str, Positions] = {
    DINO: "scale",
    REGISTERS: "antialias",
    ROTARY: "rotary",
    RADIO: "aligned_corner",
}
_SIZE = {"embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
default_cfgs = generate_default_cfgs(
    {
        name: {"hf_hub_id": "timm/", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        for name in POSITIONS
    }
)
FAMILIES = tuple(
    TowerFamily(
        name=f"tiny {rule}",
        license="dinov3-license" if rule == "rotary" else "apache-2.0",
        commercial=True,
        positions=rule,
        towers={name.partition(".")[2]: name},
        table_side=16 if name == RADIO else None,
        remark="it must be passed on" if rule == "rotary" else "",
    )
    for name, rule in POSITIONS.items()
)


def _vit(name: str, **options: Any) -> VisionTransformer:
    options.pop("pretrained", None)
    built: VisionTransformer = build_model_with_cfg(VisionTransformer, name, False, **{**_SIZE, **options})
    return built


@register_model  # type: ignore[untyped-decorator]
def vit_test_patch8_56(**options: Any) -> VisionTransformer:
    return _vit("vit_test_patch8_56", **{"img_size": 56, "patch_size": 8, **options})


@register_model  # type: ignore[untyped-decorator]
def vit_test_patch14_reg4(**options: Any) -> VisionTransformer:
    shape = {"img_size": 98, "patch_size": 14, "reg_tokens": 4, "no_embed_class": True, "init_values": 1.0}
    return _vit("vit_test_patch14_reg4", **{**shape, **options})


@register_model  # type: ignore[untyped-decorator]
def vit_test_patch16_radio(**options: Any) -> VisionTransformer:
    shape = {"img_size": 64, "patch_size": 16, "reg_tokens": 7, "no_embed_class": True}
    return _vit("vit_test_patch16_radio", **{**shape, "final_norm": False, "init_values": 1.0, **options})


@register_model  # type: ignore[untyped-decorator]
def vit_test_patch16_rotary(**options: Any) -> Eva:
    options.pop("pretrained", None)
    shape = {"patch_size": 16, "num_reg_tokens": 4, "use_rot_pos_emb": True, "use_abs_pos_emb": False}
    rotary = {"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True}
    plain = {"qkv_bias": False, "init_values": 1.0, "use_fc_norm": False, "dynamic_img_size": True}
    settings = {**_SIZE, **shape, **rotary, **plain, "embed_dim": 32, **options}
    built: Eva = build_model_with_cfg(Eva, "vit_test_patch16_rotary", False, **settings)
    return built


def add_tiny_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tiny towers known beside the real ones."""
    families = (*registry.tower_families(), *FAMILIES)
    monkeypatch.setattr(registry, "tower_families", lambda: families)


def tiny_model(name: str = DINO, seed: int = 0, **options: Any) -> Any:
    """Build a tiny tower whose random weights make its patches differ."""
    model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    enliven_tower(model, seed)
    return model.eval().requires_grad_(False)


def enliven_tower(model: nn.Module, seed: int) -> None:
    """Redraw weights at a scale where tokens differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith("token") or "pos_embed" in name:
                parameter.copy_(0.5 * drawn)
            elif parameter.ndim >= 2:
                parameter.copy_(drawn * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_((1.0 if "weight" in name or "gamma" in name else 0.0) + 0.1 * drawn)


def tiny_proxy(name: str = DINO, scale: int = 1, seed: int = 0) -> loading.ProxyModel:
    """Load a tiny tower as `load_proxy` would."""
    family = next(family for family in FAMILIES if name in family.towers.values())
    return loading.ProxyModel(tiny_model(name, seed), registry.TowerChoice(name, family), scale)


def tiny_proxy_tower(name: str = DINO, scale: int = 1, seed: int = 0) -> ProxyTower:
    """Return a tiny tower on the CPU."""
    return tiny_proxy(name, scale, seed).tower("cpu", torch.float32)


def original_radio(model: VisionTransformer, table: Tensor) -> dict[str, Tensor]:
    """Bring a tower's weights into the names of RADIO's own files."""
    state = dict(model.state_dict())
    patch = state.pop("patch_embed.proj.weight")
    state.pop("patch_embed.proj.bias")
    state.pop("pos_embed")
    tokens = torch.cat([state.pop("cls_token"), state.pop("reg_token")], 1)[0]
    renamed = {f"radio_model.model.{key}": value for key, value in state.items()}
    return renamed | {
        "radio_model.model.patch_generator.embedder.weight": patch.flatten(1),
        "radio_model.model.patch_generator.pos_embed": table,
        "radio_model.model.patch_generator.cls_token.token": tokens,
        "radio_model.summary_idxs": torch.arange(3),
    }
