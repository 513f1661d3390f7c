"""The kinds of sources: ways to give images, each one file with its flags, found by lying here.

`pipelines.run.options.SourceOptions` offers them all; the flags, the keys of settings files, the check that one of them
is given and the check that keeps outputs out of inputs follow.
"""

import pkgutil
from importlib import import_module

from pipelines.sources.kinds.base import SourceKind


def _discover() -> tuple[type[SourceKind], ...]:
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__)):
        import_module(f"{__name__}.{module}")
    return tuple(SourceKind.__subclasses__())


SOURCE_KINDS = _discover()


def kind_for(name: str) -> tuple[str, str] | None:
    """Return what a file of such a name is, and the flag that takes it; None where every kind may take it."""
    for kind in SOURCE_KINDS:
        for noun, endings in kind.endings.items():
            if name.lower().endswith(endings):
                return noun, kind.flags()[0]
    return None


__all__ = ["SOURCE_KINDS", "SourceKind", "kind_for"]
