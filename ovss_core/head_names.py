"""The names of heads and refiners, read from their files without running them: help and checks do not wait for torch."""

import ast
import sys
from collections.abc import Iterator, Mapping
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


def proxy_hosts() -> frozenset[str]:
    """Return the names of the dense heads that need a second tower."""
    return _hosts_that("needs_proxy")


def scope_hosts() -> frozenset[str]:
    """Return the names of the dense heads that can keep patches inside their region."""
    return _hosts_that("can_scope")


def classless_hosts() -> frozenset[str]:
    """Return the names of the dense heads that work on a tower without a class token."""
    return _hosts_that("classless")


def _hosts_that(flag: str) -> frozenset[str]:
    if "ovss_core.dense_heads" in sys.modules:
        heads = sys.modules["ovss_core.dense_heads"].HEADS
        return frozenset(name for name, kind in heads.items() if getattr(kind, flag))
    files = _names_in_files("dense_heads")
    return frozenset(name for name, constants in files.items() if constants.get(flag))


def clip_hosts() -> list[str]:
    """Return the names of the dense heads that need nothing beside CLIP, sorted."""
    return [name for name in host_names() if name not in proxy_hosts()]


@lru_cache(maxsize=2)
def _names_in_files(package: str) -> Mapping[str, Mapping[str, object]]:
    """Read the constants that the classes of a package set, by their `name`, sorted."""
    files = resources.files("ovss_core").joinpath(package).iterdir()
    sources = (file.read_text(encoding="utf-8") for file in files if file.name.endswith(".py"))
    return dict(sorted(found for source in sources for found in _heads(source)))


def _heads(source: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the name of each head in a file, and the constants that its class sets."""
    for kind in ast.parse(source).body:
        if not isinstance(kind, ast.ClassDef):
            continue
        constants: dict[str, object] = {
            target.id: statement.value.value
            for statement in kind.body
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        if "name" in constants:
            yield str(constants["name"]), constants
