"""Which second towers there are, by name; nothing here imports torch, so that a mistyped name has its answer at once."""

import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Literal

from ovss_core import proxy_families
from ovss_core.errors import ConfigError, nearest

Positions = Literal["scale", "antialias", "corner", "aligned_corner", "rotary"]


@dataclass(frozen=True)
class TowerFamily:
    """Towers that were trained alike: a file in `ovss_core.proxy_families` defines one.

    Attributes:
        name: The family's name.
        license: License of its weights, as timm's model cards name it.
        commercial: Whether that license allows commercial use.
        positions: How the original fits its positional table to a grid: "scale" is bicubic with (n + 0.1) / base, as
            DINO and CLIP's dense heads; "antialias" bicubic by size with antialiasing, as DINOv2 with registers;
            "corner" bilinear to a square of the longer side, then cut, as RADIO ("aligned_corner": its corners are
            pixels' centers); "rotary" has no table.
        towers: timm's name of each tower with its weights, by the name of the original, which is taken as well.
        table_side: Rows of the positional table in the original's files, where timm's own model has fewer.
        remark: What a user must know of the license; empty where nothing is to be said.
    """

    name: str
    license: str
    commercial: bool
    positions: Positions
    towers: Mapping[str, str]
    table_side: int | None = None
    remark: str = ""


@dataclass(frozen=True)
class TowerChoice:
    """A tower that was asked for by name.

    Attributes:
        name: As timm calls it, weights included, such as ``vit_base_patch16_224.dino``.
        family: Whose it is.
    """

    name: str
    family: TowerFamily

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels, which timm's names tell."""
        found = re.search(r"patch(\d+)", self.name)
        assert found, f"{self.name} does not tell its patch size"
        return int(found[1])

    @property
    def facts(self) -> dict[str, str]:
        """What `run.json` says of it."""
        return {"name": self.name, "family": self.family.name, "license": self.family.license}


@lru_cache(maxsize=1)
def tower_families() -> tuple[TowerFamily, ...]:
    """Return every family, sorted by name."""
    modules = (
        import_module(f"{proxy_families.__name__}.{found.name}")
        for found in pkgutil.iter_modules(proxy_families.__path__)
    )
    found = (value for module in modules for value in vars(module).values() if isinstance(value, TowerFamily))
    return tuple(sorted(found, key=lambda family: family.name))


def tower_names() -> list[str]:
    """Return timm's names of all towers, family by family."""
    return [name for family in tower_families() for name in family.towers.values()]


def find_tower(name: str) -> TowerChoice:
    """Look a tower up by timm's name or by the original's.

    Raises:
        ConfigError: There is no such tower.
    """
    for family in tower_families():
        for original, timm_name in family.towers.items():
            if name in (original, timm_name):
                return TowerChoice(timm_name, family)
    known = [known for family in tower_families() for pair in family.towers.items() for known in pair]
    raise ConfigError(
        f"unknown second tower {name!r}{nearest(name, known)}; give --proxy one of {', '.join(tower_names())}"
    )


def license_notice(choice: TowerChoice) -> str | None:
    """Return one sentence on a license that a user must know of, or None where nothing is to be said."""
    family = choice.family
    if family.commercial and not family.remark:
        return None
    forbidden = "" if family.commercial else ", which forbids commercial use"
    remark = f": {family.remark}" if family.remark else ""
    return f"the weights of {choice.name} are under {family.license}{forbidden}{remark}"
