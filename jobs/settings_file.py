"""Settings in a YAML file: its keys are the flags' names, and what is wrong with it is said in one line."""

from collections.abc import Collection, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from jobs.near_names import did_you_mean
from jobs.typed import current_name, shown
from ovss_core.errors import ConfigError

YAML_FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What PyYAML lets through where a text such as ``!!int`` has the wrong form for its type."""


def read_settings(given: str, known: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Read the settings of a file (or of a text that is YAML itself) under their full names, ``windows.size``.

    Args:
        given: Path, or YAML.
        known: The names that settings have.
        prefix: What the names in this file lack: ``windows.`` for a file with settings of windows.

    Raises:
        ConfigError: It cannot be read, is no YAML, or holds another name.
    """
    place, text = _read(given)
    try:
        values = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place} is no YAML: {_problem(error)}") from error
    except YAML_FAULTS as error:
        raise ConfigError(f"{place} is no YAML: {shown(str(error), quoted=False)}") from error
    if not isinstance(values, Mapping):
        got = "nothing" if values is None else shown(values)
        raise ConfigError(f"{place} must hold settings such as 'images: photos/', one a line; got {got}")
    return dict(_flatten(values, known, place, prefix))


def _read(given: str) -> tuple[str, str]:
    """Return what messages call it, and its text."""
    if not given.strip():
        raise ConfigError("--config is empty (a variable that is not set?); give a YAML file")
    path = Path(given)
    try:
        if path.is_file():
            return given, path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{given} is no text in UTF-8 ({error.reason}); give a YAML file") from error
    except OSError as error:
        raise ConfigError(
            f"cannot read {shown(given, quoted=False)}: {error.strerror}; give a YAML file"
        ) from error
    if ": " in given or "\n" in given or given.startswith("{"):
        return "--config", given
    reason = "that is a folder" if path.is_dir() else "there is no such file"
    raise ConfigError(f"cannot read the settings {shown(given, quoted=False)}: {reason}; give a YAML file")


def _flatten(
    values: Mapping[Any, Any], known: Collection[str], place: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = current_name(f"{prefix}{key}", known)
        if name in known:
            yield name, value
            continue
        below = [entry for entry in known if entry.startswith(f"{name}.")]
        if not below:
            near = did_you_mean(name, known) or "; settings have the names of flags, with _ for -"
            raise ConfigError(f"unknown setting {shown(name, quoted=False)} in {place}{near}")
        if not isinstance(value, Mapping):
            got = "empty" if value is None else shown(value)
            raise ConfigError(
                f"{name} in {place} is {got}; give it settings of its own, such as {below[0]}, or leave it out"
            )
        yield from _flatten(value, known, place, f"{name}.")


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a name stands once: of two values, one would be dropped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping, or say which of its keys is there twice."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{what} (line {mark.line + 1})" if mark else what
