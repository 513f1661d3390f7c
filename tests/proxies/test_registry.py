import subprocess
import sys
from pathlib import Path

import pytest
import timm

from ovss_core import proxy_families as families
from ovss_core.check import validate
from ovss_core.config import ProxyConfig, SegmenterConfig, WindowConfig
from ovss_core.errors import ConfigError, WeightsError
from ovss_core.proxy_families import registry
from ovss_core.proxy_families.registry import find_tower, license_notice, tower_families, tower_names
from tests.tiny_towers import FAMILIES

OWN_FAMILY = '''
"""sapiens: a family of one file."""

from ovss_core.proxy_families.registry import TowerFamily

SAPIENS = TowerFamily(
    name="sapiens",
    license="cc-by-nc-4.0",
    commercial=False,
    positions="antialias",
    towers={"sapiens_b": "vit_base_patch16_clip_224.openai"},
)
'''


@pytest.mark.parametrize("name", tower_names())
def test_every_tower_is_known_to_timm_with_the_license_and_the_patches_that_we_name(name: str) -> None:
    settings = timm.get_pretrained_cfg(name)
    assert settings is not None
    choice = find_tower(name)
    assert settings.license == choice.family.license
    assert settings.hf_hub_id
    assert f"patch{choice.patch_size}" in name


def test_a_tower_is_found_by_the_name_of_its_original_too() -> None:
    assert find_tower("dino_vitb8") == find_tower("vit_base_patch8_224.dino")
    assert find_tower("dino_vitb8").facts == {
        "name": "vit_base_patch8_224.dino",
        "family": "dino",
        "license": "apache-2.0",
    }
    with pytest.raises(
        ConfigError, match=r"unknown second tower 'dino_vitb9' \(did you mean 'dino_vitb8'\?\)"
    ):
        find_tower("dino_vitb9")


def test_another_family_is_one_file_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sapiens.py").write_text(OWN_FAMILY)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    found = registry.tower_families.__wrapped__()
    assert {family.name for family in found} - {family.name for family in tower_families()} == {"sapiens"}
    monkeypatch.setattr(registry, "tower_families", lambda: found)
    notice = license_notice(find_tower("sapiens_b"))
    assert notice is not None
    assert "cc-by-nc-4.0, which forbids commercial use" in notice


def test_only_a_license_with_conditions_is_spoken_of() -> None:
    assert license_notice(find_tower("dino_vitb16")) is None
    notice = license_notice(find_tower("dinov3_vitb16"))
    assert notice is not None
    assert notice.startswith("the weights of vit_base_patch16_dinov3.lvd1689m are under dinov3-license: ")
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_settings_are_checked_without_importing_torch() -> None:
    code = (
        "import sys; from ovss_core.check import validate; from ovss_core.config import *\n"
        "try: validate(SegmenterConfig(ModelConfig('demo'), 'proxyclip'))\n"
        "except ValueError as error: print(error)\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("host 'proxyclip' needs a second tower beside CLIP; give --proxy")


@pytest.mark.parametrize(
    ("proxy", "windows", "message"),
    [
        (
            ProxyConfig("dino_vitb16", "random", 3),
            {},
            "proxy.scale 3 does not divide the patches of vit_base",
        ),
        (ProxyConfig("vit_huge"), {}, "unknown second tower 'vit_huge'"),
        (
            ProxyConfig("dinov2_vitb14", "random"),
            {"size": 12, "stride": 12},
            "windows of 12 pixels are smaller than the (model's patches of 16|patches)",
        ),
    ],
)
def test_a_tower_that_does_not_fit_is_refused(
    proxy: ProxyConfig, windows: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(SegmenterConfig(host="proxyclip", proxy=proxy, windows=WindowConfig(**windows)))


def test_a_tower_that_nothing_reads_is_named_and_decides_nothing() -> None:
    config = SegmenterConfig(host="clearclip", proxy=ProxyConfig("dino_vitb8", "random"))
    [warning] = validate(config)
    assert "proxy.name (it goes with --host " in warning
    assert config.deciding() == SegmenterConfig(host="clearclip").deciding()
    assert config.tower_part == SegmenterConfig(host="clearclip").tower_part


def test_the_tower_decides_but_not_where_its_weights_came_from() -> None:
    def deciding(*proxy: object) -> dict[str, object]:
        return SegmenterConfig(host="proxyclip", proxy=ProxyConfig(*proxy)).deciding()  # type: ignore[arg-type]

    assert deciding("dino_vitb8") == deciding("dino_vitb8", "/a/file")
    assert deciding("dino_vitb8") != deciding("dino_vitb16")
    with pytest.raises(ConfigError, match=r"proxy\.scale is 0; give at least 1"):
        ProxyConfig(scale=0)
    with pytest.raises(WeightsError, match="is no file"):
        validate(SegmenterConfig(host="proxyclip", proxy=ProxyConfig("dino_vitb8", "nothing.pth")))
