"""DINOv2, with and without registers; patches of 14 pixels.

"DINOv2: Learning Robust Visual Features without Supervision" (Oquab et al., TMLR 2024); "Vision Transformers Need
Registers" (Darcet et al., ICLR 2024).
"""

from ovss_core.proxy_families.registry import TowerFamily

_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}

DINOV2 = TowerFamily(
    name="dinov2",
    license="apache-2.0",
    commercial=True,
    positions="scale",
    towers={f"dinov2_vit{short}14": f"vit_{size}_patch14_dinov2.lvd142m" for short, size in _SIZES.items()},
)
REGISTERS = TowerFamily(
    name="dinov2 with registers",
    license="apache-2.0",
    commercial=True,
    positions="antialias",
    towers={
        f"dinov2_vit{short}14_reg": f"vit_{size}_patch14_reg4_dinov2.lvd142m"
        for short, size in _SIZES.items()
    },
)
