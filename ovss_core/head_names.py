"""The hosts' names, read from their files without running them: help and checks of settings do not wait for torch."""

import ast
import pkgutil
from importlib.util import find_spec
from pathlib import Path


def host_names() -> list[str]:
    """Return the name of every dense head, sorted: those of `ovss_core.dense_heads.HEADS`."""
    spec = find_spec("ovss_core.dense_heads")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return sorted(
        name
        for module in pkgutil.iter_modules(folders)
        for folder in folders
        if (path := Path(folder, f"{module.name}.py")).is_file()
        for name in _names(path)
    )


def _names(path: Path) -> list[str]:
    """Return what the classes of a file set as their `name`."""
    assignments = [
        statement
        for entry in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(entry, ast.ClassDef)
        for statement in entry.body
        if isinstance(statement, ast.Assign)
    ]
    return [
        str(statement.value.value)
        for statement in assignments
        if isinstance(statement.value, ast.Constant)
        and any(isinstance(target, ast.Name) and target.id == "name" for target in statement.targets)
    ]
