"""The names of heads and refiners, read from their files without running them: help and checks do not wait for torch."""

import ast
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources

from ovss_core.errors import ConfigError, nearest


def host_names() -> list[str]:
    """Return the name of every dense head, sorted: those of `ovss_core.dense_heads.HEADS`."""
    if "ovss_core.dense_heads" in sys.modules:
        return list(sys.modules["ovss_core.dense_heads"].HEADS)
    return list(_names_in_files("dense_heads"))


def refiner_names() -> list[str]:
    """Return what `--refine` may name: "none", then those of `ovss_core.refiners.REFINERS`, sorted."""
    return ["none", *_names_in_files("refiners")]


def require_host(name: str) -> None:
    """Refuse a dense head that does not exist.

    Raises:
        ConfigError: No head has that name.
    """
    names = host_names()
    if name not in names:
        raise ConfigError(f"unknown host {name!r}{nearest(name, names)}; give one of {', '.join(names)}")


def require_refiner(name: str) -> None:
    """Refuse a refiner that does not exist.

    Raises:
        ConfigError: No refiner has that name.
    """
    names = refiner_names()
    if name not in names:
        raise ConfigError(f"unknown refiner {name!r}{nearest(name, names)}; give one of {', '.join(names)}")


@lru_cache(maxsize=2)
def _names_in_files(package: str) -> tuple[str, ...]:
    files = resources.files("ovss_core").joinpath(package).iterdir()
    sources = (file.read_text(encoding="utf-8") for file in files if file.name.endswith(".py"))
    return tuple(sorted(name for source in sources for name in _names(source)))


def _names(source: str) -> Iterator[str]:
    """Yield what the classes of a file set as their `name`."""
    for kind in ast.parse(source).body:
        for statement in kind.body if isinstance(kind, ast.ClassDef) else ():
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
                named = any(
                    isinstance(target, ast.Name) and target.id == "name" for target in statement.targets
                )
                if named:
                    yield str(statement.value.value)
