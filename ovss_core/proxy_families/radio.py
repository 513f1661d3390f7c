"""C-RADIO: several teachers in one tower; the tower alone, without its heads for text.

"RADIOv2.5: Improved Baselines for Agglomerative Vision Foundation Models" (Heinrich et al., CVPR 2025).

The positional table has 128 x 128 places. The originals resize it to a square of the window's longer side and cut;
whether corners are pixels' centers differs by checkpoint.
"""

from ovss_core.proxy_families.registry import TowerFamily

_LICENSE = "nvidia-open-model-license"

ALIGNED = TowerFamily(
    name="c-radio v3 b and h",
    license=_LICENSE,
    commercial=True,
    positions="aligned_corner",
    towers={
        "c-radio_v3-b": "vit_base_patch16_radio_v3.c_radio",
        "c-radio_v3-h": "vit_huge_patch16_radio_v3.c_radio",
    },
    table_side=128,
)
PLAIN = TowerFamily(
    name="c-radio v3 l and g, v4",
    license=_LICENSE,
    commercial=True,
    positions="corner",
    towers={
        "c-radio_v3-l": "vit_large_patch16_radio_v3.c_radio",
        "c-radio_v3-g": "vit_giant_patch16_radio_v3.c_radio",
        "c-radio_v4-so400m": "vit_so400m_patch16_radio_v4.c_radio",
        "c-radio_v4-h": "vit_huge_patch16_radio_v4.c_radio",
    },
    table_side=128,
)
