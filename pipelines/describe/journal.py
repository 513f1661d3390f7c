"""The questions and answers behind a file of descriptions: one line each, so that a stop loses none that was paid for."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovss_core.errors import ConfigError, StorageError

ENDING = ".answers.jsonl"


class Journal:
    """Appends to ``OUTPUT.answers.jsonl``; its first line says what was asked for.

    Args:
        output: The file of descriptions.
        asked: What decides the answers: prompt, model, vocabulary.
        overwrite: Begin anew where the file belongs to something else.

    Raises:
        ConfigError: The file belongs to another prompt, model or vocabulary.
        StorageError: It cannot be read or written.
    """

    def __init__(self, output: Path, asked: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path = output.with_name(output.name + ENDING)
        self.accepted: dict[str, list[str]] = {}
        self.tokens = {"prompt": 0, "completion": 0}
        plain = json.loads(json.dumps(asked))
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]  # a start that was killed may have left half a line
            lines = _read_lines(whole, self.path)
            if lines and lines[0] != {"asked": plain}:
                if not overwrite:
                    raise ConfigError(self._of_another(lines[0], plain))
                lines, whole = [], b""
            if not lines:
                whole = _line({"asked": plain})
            if whole != data:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self.path, whole)
        except OSError as error:
            raise StorageError(
                f"cannot use {self.path}: {error.strerror or error}; give another --output"
            ) from error
        for entry in lines[1:]:
            self._take(entry)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Store one question with its answer; it is on the disk when this returns."""
        with self.path.open("ab") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())
        self._take(entry)

    def _take(self, entry: Mapping[str, Any]) -> None:
        for kind in self.tokens:
            self.tokens[kind] += entry["tokens"][kind]
        if not entry["faults"]:
            self.accepted[entry["class"]] = entry["sentences"]

    def _of_another(self, first: Any, asked: Mapping[str, Any]) -> str:
        before = first.get("asked") if isinstance(first, dict) else None
        other = [name for name in asked if not isinstance(before, dict) or before.get(name) != asked[name]]
        return (
            f"{self.path} was written with another {', '.join(other) or 'setting'}; give another --output, or --overwrite "
            "to replace it"
        )


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that it is never there by half."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _read_lines(data: bytes, path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in data.splitlines()]
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); give another --output, or remove it") from error
