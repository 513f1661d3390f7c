"""DINO, the second tower of ProxyCLIP and CorrCLIP.

"Emerging Properties in Self-Supervised Vision Transformers" (Caron et al., ICCV 2021).
"""

from ovss_core.proxy_families.registry import TowerFamily

DINO = TowerFamily(
    name="dino",
    license="apache-2.0",
    commercial=True,
    positions="scale",
    towers={
        "dino_vitb16": "vit_base_patch16_224.dino",
        "dino_vitb8": "vit_base_patch8_224.dino",
        "dino_vits16": "vit_small_patch16_224.dino",
        "dino_vits8": "vit_small_patch8_224.dino",
    },
)
