"""The hosts: ways to read dense features out of CLIP, each one file, chosen by name."""

import pkgutil
from importlib import import_module

from ovss_core.dense_heads.base import DenseHead, HeadOptions, LastBlockHead
from ovss_core.head_names import require_host


def _discover() -> dict[str, type[DenseHead]]:
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    found: dict[str, type[DenseHead]] = {}
    pending: list[type[DenseHead]] = [*DenseHead.__subclasses__()]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "name" in vars(kind):
            found[kind.name] = kind
    return dict(sorted(found.items()))


HEADS = _discover()


def build_head(name: str, options: HeadOptions | None = None) -> DenseHead:
    """Build the head called `name`.

    Raises:
        ConfigError: No head has that name.
    """
    require_host(name)
    return HEADS[name](options or HeadOptions())


__all__ = ["HEADS", "DenseHead", "HeadOptions", "LastBlockHead", "build_head"]
