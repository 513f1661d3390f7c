"""The classes that a run may assign, and the phrases that stand for each of them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np

from ovss_core.errors import VocabularyError

BACKGROUND_NAME = "background"
MAX_CLASSES = 65_535
_ALIASES = {
    "voc21": "voc21.sfp",
    "voc20": "voc20.sfp",
    "coco_object": "coco_object.sfp",
    "cityscapes": "cityscapes.sfp",
}


@dataclass(frozen=True)
class VocabularyClass:
    """One class: its name and the phrases (synonyms) that the text tower reads for it."""

    name: str
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """An ordered set of classes; a class's position is its value in every mask.

    Args:
        classes: At least one class, at most 65,535, names unique.
        name: Where the vocabulary came from, for messages and the run record.

    Raises:
        VocabularyError: No class, too many, a repeated name or an empty phrase.
    """

    classes: tuple[VocabularyClass, ...]
    name: str | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.classes) <= MAX_CLASSES:
            raise VocabularyError(
                f"a vocabulary needs 1 to {MAX_CLASSES} classes, got {len(self.classes)}; give one class a line"
            )
        seen: dict[str, int] = {}
        for position, entry in enumerate(self.classes):
            if entry.name in seen:
                raise VocabularyError(
                    f"class {entry.name!r} appears twice (classes {seen[entry.name] + 1} and {position + 1}"
                    f"{f' of {self.name}' if self.name else ''}); give each class one line and put its synonyms "
                    "on that line, separated by commas"
                )
            if not entry.name.strip() or not all(phrase.strip() for phrase in entry.phrases):
                raise VocabularyError(f"class {position + 1} has an empty name or phrase: {entry}; remove it")
            if not entry.phrases and entry.name != BACKGROUND_NAME:
                raise VocabularyError(f"class {entry.name!r} has no phrase; give it at least one")
            seen[entry.name] = position
        if not any(entry.phrases for entry in self.classes):
            raise VocabularyError(
                "the vocabulary has no phrase to look for; add a class beside the background"
            )

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def names(self) -> list[str]:
        """Class names in mask order."""
        return [entry.name for entry in self.classes]

    @cached_property
    def phrases(self) -> list[str]:
        """Every phrase of every class, class by class."""
        return [phrase for entry in self.classes for phrase in entry.phrases]

    @cached_property
    def phrase_class(self) -> np.ndarray:
        """The class index of each phrase, int64 [phrases]."""
        return np.repeat(np.arange(len(self.classes)), [len(entry.phrases) for entry in self.classes])

    @cached_property
    def background_index(self) -> int | None:
        """The index of the class named "background", or None."""
        return self.names.index(BACKGROUND_NAME) if BACKGROUND_NAME in self.names else None

    @property
    def mask_dtype(self) -> type[np.uint8] | type[np.uint16]:
        """uint8 for up to 255 classes (255 stays free to mean "ignore"), uint16 above."""
        return np.uint8 if len(self.classes) <= 255 else np.uint16

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over names and phrases in order; the name of the vocabulary does not count."""
        content = [[entry.name, *entry.phrases] for entry in self.classes]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Return names and phrases as JSON-ready values."""
        return {"name": self.name, "classes": [[entry.name, *entry.phrases] for entry in self.classes]}

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> "Vocabulary":
        """Rebuild a vocabulary from `to_dict`."""
        rows: Sequence[Sequence[str]] = values["classes"]  # type: ignore[assignment]
        name = values.get("name")
        classes = tuple(VocabularyClass(row[0], tuple(row[1:])) for row in rows)
        return cls(classes, None if name is None else str(name))

    @classmethod
    def from_names(cls, names: Iterable[str], name: str | None = None) -> "Vocabulary":
        """Build a vocabulary from lines as a vocabulary file holds them.

        Args:
            names: One entry a class: ``phrase, synonym, ...`` (the first phrase names the class) or
                ``name: phrase, synonym, ...``. A class named "background" is the background class.
            name: Where the lines came from.
        """
        return cls(tuple(_parse_class(line) for line in names), name)

    @classmethod
    def from_file(cls, path: str | Path) -> "Vocabulary":
        """Read a UTF-8 text file with one class a line; empty lines and lines that start with # are skipped.

        Raises:
            VocabularyError: The file cannot be read or holds no class.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise VocabularyError(
                f"cannot read the vocabulary {path}: {error}; give a UTF-8 text file with one class a line, or one "
                f"of the shipped names: {', '.join(cls.shipped_names())}"
            ) from error
        return cls.from_names(_class_lines(text), str(path))

    @classmethod
    def load(cls, spec: str | Path) -> "Vocabulary":
        """Load a shipped vocabulary by its name, or a file by its path; an existing path wins."""
        if Path(spec).is_file():
            return cls.from_file(spec)
        name = _ALIASES.get(str(spec), str(spec))
        if name not in cls.shipped_names():
            raise VocabularyError(
                f"unknown vocabulary {str(spec)!r}: no such file, and the shipped names are "
                f"{', '.join(sorted({*cls.shipped_names(), *_ALIASES}))}"
            )
        text = (
            resources.files("ovss_core").joinpath("vocabularies", f"{name}.txt").read_text(encoding="utf-8")
        )
        return cls.from_names(_class_lines(text), name)

    @classmethod
    def shipped_names(cls) -> list[str]:
        """Names of the vocabularies that come with ovss."""
        folder = resources.files("ovss_core").joinpath("vocabularies")
        return sorted(
            entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt")
        )


def _class_lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def _parse_class(line: str) -> VocabularyClass:
    name, colon, rest = line.partition(":")
    phrases = tuple(phrase.strip() for phrase in (rest if colon else line).split(",") if phrase.strip())
    return VocabularyClass(name.strip() if colon else (phrases[0] if phrases else ""), phrases)
