"""The sentences that ship for every class of the shipped vocabularies.

`vocabularies/descriptions/shared.json` holds them by what a class is called in speech. Beside it each family of
vocabularies (`voc` for voc20 and voc21 in both papers' spellings, and so on) has a file for what differs: a text names the
shared entry that a class takes (``"trafficlight": "traffic light"``), a list holds sentences of its own. A class that the
file leaves out takes the shared entry of its own name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from ovss_core.config import SegmenterConfig
from ovss_core.vocabulary import Vocabulary
from ovss_core.vocabulary_files import is_background

__all__ = [
    "SHARED",
    "DescriptionChoice",
    "ShippedDescriptions",
    "choose_descriptions",
    "family_of",
    "shipped_descriptions",
]

DescriptionChoice = Mapping[str, Sequence[str]] | Literal["shipped"] | None
"""Sentences by class name; those that ship with the vocabulary, if any; or none."""


SHARED = "shared"
_FAMILIES = {
    "voc20": "voc",
    "voc21": "voc",
    "context59": "context",
    "context60": "context",
    "coco_stuff164k": "coco_stuff",
}
"""Families whose vocabularies have other names; the others are named alike."""


@dataclass(frozen=True)
class ShippedDescriptions:
    """The shipped sentences of one vocabulary.

    Attributes:
        sentences: Sentences by class name; the background, which is never ambiguous, has none.
        spoken: What a class is called in its sentences, by class name, where that is another word than its name.
    """

    sentences: dict[str, list[str]]
    spoken: dict[str, str]


def family_of(name: str) -> str:
    """Return the family of a shipped vocabulary's name: ``voc21.sfp`` is of ``voc``."""
    base = name.partition(".")[0]
    return _FAMILIES.get(base, base)


def shipped_descriptions(vocabulary: Vocabulary) -> ShippedDescriptions | None:
    """Return the sentences that ship for a vocabulary.

    Returns:
        None for a vocabulary that is not shipped. A shipped one has sentences for every class but the background.
    """
    name = vocabulary.name
    if name is None or name not in Vocabulary.shipped_names():
        return None
    if Vocabulary.shipped(name).content_hash != vocabulary.content_hash:  # a file that is called like one
        return None
    own, shared = _read(family_of(name)), _read(SHARED)
    spoken = {name: entry for name, entry in own.items() if isinstance(entry, str)}
    sentences = {}
    for name in vocabulary.names:
        entry = own.get(name, name)
        found = shared.get(entry) if isinstance(entry, str) else entry
        if found is not None and not is_background(name):
            sentences[name] = list(found)
    return ShippedDescriptions(sentences, {name: word for name, word in spoken.items() if name in sentences})


def choose_descriptions(
    choice: DescriptionChoice, vocabulary: Vocabulary, config: SegmenterConfig
) -> Mapping[str, Sequence[str]] | None:
    """Resolve "shipped" for a run: None where nothing ships for its words, or where nothing would read sentences."""
    if choice != "shipped":
        return choice
    purification = config.purification
    found = shipped_descriptions(vocabulary) if purification.active and purification.ambiguity else None
    return found.sentences if found else None


@cache
def _read(name: str) -> dict[str, Any]:
    path = resources.files("ovss_core").joinpath("vocabularies", "descriptions", f"{name}.json")
    if not path.is_file():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
