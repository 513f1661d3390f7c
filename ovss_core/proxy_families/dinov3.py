"""DINOv3 (Simeoni et al. 2025): rotary positions, four registers."""

from ovss_core.proxy_families.registry import TowerFamily

DINOV3 = TowerFamily(
    name="dinov3",
    license="dinov3-license",
    commercial=True,
    positions="rotary",
    towers={
        f"dinov3_{short}": f"vit_{size}_patch16_dinov3.lvd1689m"
        for short, size in {
            "vits16": "small",
            "vits16plus": "small_plus",
            "vitb16": "base",
            "vitl16": "large",
            "vith16plus": "huge_plus",
        }.items()
    },
    remark="whoever passes the weights or what is derived from them on passes the DINOv3 license on, and its "
    "restrictions on use and trade apply",
)
