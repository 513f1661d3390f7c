"""DINOv2 (Oquab et al. 2023), with and without registers (Darcet et al. 2024); patches of 14 pixels."""

from ovss_core.proxy_families.registry import TowerFamily

_PAPER = "DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024"
_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}

DINOV2 = TowerFamily(
    name="dinov2",
    papers=_PAPER,
    license="apache-2.0",
    commercial=True,
    positions="scale",
    towers={f"dinov2_vit{short}14": f"vit_{size}_patch14_dinov2.lvd142m" for short, size in _SIZES.items()},
)
REGISTERS = TowerFamily(
    name="dinov2 with registers",
    papers=f"{_PAPER}; Vision Transformers Need Registers, ICLR 2024",
    license="apache-2.0",
    commercial=True,
    positions="antialias",
    towers={
        f"dinov2_vit{short}14_reg": f"vit_{size}_patch14_reg4_dinov2.lvd142m"
        for short, size in _SIZES.items()
    },
)
