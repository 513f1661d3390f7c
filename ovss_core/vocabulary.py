"""The classes that a run may assign, and the phrases that stand for each of them."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np

from ovss_core.errors import ConfigError, VocabularyError, nearest
from ovss_core.vocabulary_files import (
    BACKGROUND_NAME,
    brief,
    is_background,
    parse_class_line,
    read_entries,
    split_words,
)

__all__ = ["BACKGROUND_NAME", "MAX_CLASSES", "Vocabulary", "VocabularyClass"]

MAX_CLASSES = 65_535
_ALIASES = {
    "voc21": "voc21.sfp",
    "voc20": "voc20.sfp",
    "coco_object": "coco_object.sfp",
    "cityscapes": "cityscapes.sfp",
}
_FILE_ENDINGS = (".txt", ".json", ".csv", ".tsv", ".yaml", ".yml", ".names", ".xml")

Descriptions = Mapping[str, Sequence[str]]
"""Sentences by class name."""


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
        VocabularyError: No class, too many, a repeated name, an empty phrase or two backgrounds.
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
                    f"class {brief(entry.name)} appears twice (classes {seen[entry.name] + 1} and {position + 1}"
                    f"{f' of {self.name}' if self.name else ''}); give each class one line and put its synonyms "
                    "on that line, separated by commas"
                )
            if not entry.name.strip() or not all(phrase.strip() for phrase in entry.phrases):
                raise VocabularyError(
                    f"class {position + 1} has an empty name or phrase: {_told(entry)}; remove it"
                )
            if not _is_text(entry):
                raise VocabularyError(
                    f"class {position + 1} has a sign in it that is no text: {_told(entry)}; write it as UTF-8"
                )
            if not entry.phrases and not is_background(entry.name):
                raise VocabularyError(f"class {brief(entry.name)} has no phrase; give it at least one")
            seen[entry.name] = position
        backgrounds = [entry.name for entry in self.classes if is_background(entry.name)]
        if len(backgrounds) > 1:
            raise VocabularyError(
                f"classes {backgrounds[0]!r} and {backgrounds[1]!r} both name the background"
                f"{f' of {self.name}' if self.name else ''}; keep one of them"
            )
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
        """The index of the class named "background", in one of its usual spellings, or None."""
        return next((index for index, name in enumerate(self.names) if is_background(name)), None)

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
                ``name: phrase, synonym, ...``. A class named "background" (or Background, _background_, bg) is the
                background class.
            name: Where the lines came from.

        Examples:
            >>> words = Vocabulary.from_names(["background", "sofa, couch", "person: person, person in shirt"])
            >>> words.names
            ['background', 'sofa', 'person']
            >>> words.phrases
            ['background', 'sofa', 'couch', 'person', 'person in shirt']
            >>> words.phrase_class.tolist()
            [0, 1, 1, 2, 2]
            >>> words.background_index
            0
        """
        return cls(tuple(VocabularyClass(*parse_class_line(line)) for line in names), name)

    @classmethod
    def from_file(cls, path: str | Path) -> "Vocabulary":
        """Read a UTF-8 text file with one class a line; empty lines and lines that start with # are skipped.

        Also read are numbered lines, CVAT's label maps, and lists or objects in JSON and YAML, where their numbers
        are the classes' positions; see `vocabulary_files`.

        Raises:
            VocabularyError: The file cannot be read, holds no class, or something else than classes.
        """
        try:
            entries = read_entries(Path(path))
        except (OSError, UnicodeDecodeError) as error:
            raise VocabularyError(
                f"cannot read the vocabulary {path}: {error}; give a UTF-8 text file with one class a line, or one "
                f"of the shipped names: {', '.join(cls.shipped_names())}"
            ) from error
        return cls(tuple(VocabularyClass(*entry) for entry in entries), str(path))

    @classmethod
    def load(cls, spec: str | Path | Sequence[str]) -> "Vocabulary":
        """Load what a user named: a shipped vocabulary, a file, or the words themselves.

        Args:
            spec: A shipped name, a path (an existing file wins over a shipped name), words separated by commas
                (``cat,dog``), or a list of classes as `from_names` takes it.

        Raises:
            VocabularyError: It is none of these, or cannot be used.

        Examples:
            >>> len(Vocabulary.load("ade20k")), Vocabulary.load("cat,dog").names
            (150, ['cat', 'dog'])
        """
        if not isinstance(spec, str | Path):
            return cls.from_names(spec, "words")
        text = str(spec)
        if os.path.isfile(text):  # noqa: PTH113 (Path.is_file raises where a list of words is too long for a name)
            return cls.from_file(text)
        name = _ALIASES.get(text, text)
        if name in cls.shipped_names():
            return cls.shipped(name)
        if ("," in text or "\n" in text) and not text.endswith(_FILE_ENDINGS):
            return cls.from_names(split_words(text), "words")
        raise VocabularyError(_unknown(text, sorted({*cls.shipped_names(), *_ALIASES})))

    @classmethod
    def shipped(cls, name: str) -> "Vocabulary":
        """Return a vocabulary that comes with ovss, by one of `shipped_names`; files of that name do not matter."""
        path = resources.files("ovss_core").joinpath("vocabularies", f"{name}.txt")
        return cls.from_names(_class_lines(path.read_text(encoding="utf-8")), name)

    @classmethod
    def shipped_names(cls) -> list[str]:
        """Names of the vocabularies that come with ovss."""
        folder = resources.files("ovss_core").joinpath("vocabularies")
        return sorted(
            entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt")
        )


def _told(entry: VocabularyClass) -> str:
    return brief(f"{entry.name}: {', '.join(entry.phrases)}")


def _is_text(entry: VocabularyClass) -> bool:
    """Say whether names can be written down: halves of characters (surrogates) cannot."""
    try:
        "".join((entry.name, *entry.phrases)).encode()
    except UnicodeEncodeError:
        return False
    return True


def _class_lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def _unknown(spec: str, shipped: list[str]) -> str:
    if os.path.isdir(spec):  # noqa: PTH112 (as above)
        return f"the vocabulary {spec!r} is a folder; give a file with one class a line"
    # a part of a name is far from the whole one: coco_stuff164k
    parts = [name for name in shipped if len(spec) > 2 and spec.lower() in name.lower()]
    hint = nearest(spec, shipped) or nearest(min(parts, key=len, default=""), parts)
    return (
        f"unknown vocabulary {brief(spec)}{hint}: no such file, and the shipped names are "
        f"{', '.join(shipped)}; words of your own go here too, separated by commas"
    )


def require_descriptions(vocabulary: Vocabulary, descriptions: Descriptions | None) -> None:
    """Refuse descriptions that belong to no class or hold no sentence.

    Raises:
        ConfigError: Naming the first of them.
    """
    given = descriptions or {}
    unknown = sorted(set(given) - set(vocabulary.names))
    if unknown:
        raise ConfigError(
            f"descriptions name classes that the vocabulary lacks: {', '.join(unknown[:5])}; remove them"
            f"{nearest(unknown[0], vocabulary.names)}"
        )
    for name, sentences in given.items():
        if isinstance(sentences, str) or not sentences or not all(map(_is_sentence, sentences)):
            raise ConfigError(
                f"the description of {name!r} is not a list of sentences; give at least one sentence"
            )


def _is_sentence(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
