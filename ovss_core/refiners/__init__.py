"""The refiners: ways to fit score maps to a picture's edges before labels are assigned, each one file, chosen by name."""

import pkgutil
from importlib import import_module

from ovss_core.config import RefinerSettings
from ovss_core.head_names import require_refiner
from ovss_core.refiners.base import Guide, Piece, Refiner, ScoreMaps


def _discover() -> dict[str, type[Refiner]]:
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return {kind.name: kind for kind in sorted(Refiner.__subclasses__(), key=lambda kind: kind.name)}


REFINERS = _discover()


def build_refiner(name: str, settings: RefinerSettings | None = None) -> Refiner | None:
    """Build the refiner called `name`; None for "none".

    Raises:
        ConfigError: No refiner has that name.
    """
    require_refiner(name)
    return None if name == "none" else REFINERS[name](settings)


__all__ = ["REFINERS", "Guide", "Piece", "Refiner", "ScoreMaps", "build_refiner"]
