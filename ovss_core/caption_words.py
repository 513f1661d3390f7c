"""Which classes a caption names: plain matching against a vocabulary, without a model and without grammar.

A caption and the phrases are read as words in lower case, apart from everything that is no letter or digit. From the
caption's front on, the longest phrase that stands there is taken, and matching goes on behind it; so "polar bear" is no
bear, and "bearing" neither. The last word of a phrase may be in the plural: by the usual endings, or one of
`IRREGULAR`. A phrase matches whatever the sentence says of it ("no dog" names the dog).
"""

import re
import unicodedata

from ovss_core.vocabulary import Vocabulary

IRREGULAR = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "half": "halves",
    "knife": "knives",
    "leaf": "leaves",
    "life": "lives",
    "loaf": "loaves",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "scarf": "scarves",
    "shelf": "shelves",
    "tooth": "teeth",
    "wife": "wives",
    "wolf": "wolves",
    "woman": "women",
}
"""Plurals by singulars, also of words that end so ("policeman", "bookshelf")."""
_WORD = re.compile(r"[^\W_]+")
_HISSING = ("s", "x", "z", "ch", "sh")


class CaptionWords:
    """Finds the classes of a vocabulary that captions name.

    Args:
        vocabulary: The classes; a background is looked for nowhere.

    Examples:
        >>> words = CaptionWords(Vocabulary.from_names(["bear", "polar bear", "person, man", "bus"]))
        >>> words.find("Two polar bears, men waiting for buses: unbearable!")
        [1, 2, 3]
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._classes: dict[tuple[str, ...], int] = {}
        phrases = [
            (words_of(phrase), index)
            for phrase, index in zip(vocabulary.phrases, vocabulary.phrase_class.tolist(), strict=True)
            if index != vocabulary.background_index
        ]
        for words, index in phrases:
            if words:
                self._classes.setdefault(tuple(words), index)
        for words, index in phrases:  # what one class is called goes before another's plural: glasses
            for form in plurals(words[-1]) if words else ():
                self._classes.setdefault((*words[:-1], form), index)
        self._longest = max(map(len, self._classes), default=0)

    def find(self, caption: str) -> list[int]:
        """Return the classes that a caption names, each once, as they come first."""
        words, found, place = words_of(caption), dict[int, None](), 0
        while place < len(words):
            for length in range(min(self._longest, len(words) - place), 0, -1):
                index = self._classes.get(tuple(words[place : place + length]))
                if index is not None:
                    found[index] = None
                    place += length - 1
                    break
            place += 1
        return list(found)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def plurals(word: str) -> list[str]:
    """Return how a noun may read in the plural, usual endings and `IRREGULAR`; one that is none has no harm of it."""
    found = [
        word.removesuffix(ending) + plural for ending, plural in IRREGULAR.items() if word.endswith(ending)
    ]
    if word.endswith(_HISSING) or word.endswith("o"):
        found.append(f"{word}es")
    if len(word) > 1 and word.endswith("y") and word[-2] not in "aeiou":
        found.append(f"{word[:-1]}ies")
    if not word.endswith(_HISSING):
        found.append(f"{word}s")
    return found
