"""What a machine can find wrong with sentences that describe the classes of a vocabulary.

Whether a sentence is true takes a reader. That it belongs to one class alone, says the name of no rival and is read whole
by the text tower can be checked, and is: for what ships (`tests/review_descriptions.py`) and for what `ovss describe` gets.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ovss_core.vocabulary import Vocabulary
from ovss_core.vocabulary_files import is_background

__all__ = ["Finding", "ReviewRules", "count_clip_tokens", "review", "review_class"]

CountTokens = Callable[[Sequence[str]], Sequence[int]]
"""Gives the tokens of each text, start and end included."""
_Said = tuple[str, str, frozenset[str]]
"""A class, a sentence of it, and the words of that, own names apart."""
_OWN = "_"
_OPENING = 6


@dataclass(frozen=True)
class ReviewRules:
    """What sentences must keep to.

    Attributes:
        least, most: Sentences a class.
        max_words: Words a sentence.
        max_tokens: Tokens of a sentence that the text tower reads, start and end included.
        likeness: Two classes' sentences share less than this share of their words, own names apart.
        same_opening: Sentences, of all classes, that may begin with the same six words, own names apart.
    """

    least: int = 5
    most: int = 8
    max_words: int = 30
    max_tokens: int = 77
    likeness: float = 0.75
    same_opening: int = 3


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        name: The class it was found at.
        fault: What is wrong, in words.
        sentence: Where it is wrong; empty where that is no single sentence.
    """

    name: str
    fault: str
    sentence: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.fault}{f': {self.sentence}' if self.sentence else ''}"


def review(
    vocabulary: Vocabulary,
    descriptions: Mapping[str, Sequence[str]],
    count_tokens: CountTokens,
    spoken: Mapping[str, str] | None = None,
    rules: ReviewRules | None = None,
) -> list[Finding]:
    """Look through the sentences of a whole vocabulary.

    Args:
        descriptions: Sentences by class name.
        count_tokens: Such as `count_clip_tokens`.
        spoken: Another word for a class by its name, such as "traffic light" for ``trafficlight``.

    Returns:
        What is wrong, class by class; nothing where all is well.
    """
    rules, names = rules or ReviewRules(), _Names(vocabulary, spoken or {})
    findings = [Finding(name, "is no class of the vocabulary") for name in descriptions if name not in names]
    for name in vocabulary.names:
        if not is_background(name):
            findings += _review_one(name, descriptions.get(name, []), names, count_tokens, rules)
    known = {name: descriptions[name] for name in vocabulary.names if name in descriptions}
    return [*findings, *_alike(known, names, rules), *_monotonous(known, names, rules)]


def review_class(
    name: str,
    sentences: Sequence[str],
    vocabulary: Vocabulary,
    count_tokens: CountTokens,
    rules: ReviewRules | None = None,
    others: Mapping[str, Sequence[str]] | None = None,
) -> list[Finding]:
    """Look through the sentences of one class.

    Args:
        others: Sentences of other classes, which these must not repeat.
    """
    names, rules = _Names(vocabulary, {}), rules or ReviewRules()
    found = list(_review_one(name, sentences, names, count_tokens, rules))
    before = _said(others or {}, names)
    for sentence in _said({name: sentences}, names):
        found += _repeats(sentence, before, rules)
        before.append(sentence)
    return found


def count_clip_tokens(texts: Sequence[str]) -> list[int]:
    """Count the tokens of texts as CLIP's own tokenizer cuts them, start and end included."""
    tokenizer = _clip_tokenizer()
    return [len(tokenizer.encode(text)) + 2 for text in texts]


@lru_cache(maxsize=1)
def _clip_tokenizer() -> Any:
    """Load open_clip's tokenizer, by its file where the package is not loaded: that takes three times as long."""
    if "open_clip" not in sys.modules and (package := find_spec("open_clip")) and package.origin:
        spec = spec_from_file_location("_open_clip_tokenizer", Path(package.origin).with_name("tokenizer.py"))
        if spec is not None and spec.loader is not None:
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.SimpleTokenizer()
    from open_clip.tokenizer import SimpleTokenizer  # takes seconds, and reading sentences does not need it

    return SimpleTokenizer()


class _Names:
    """Finds classes that a sentence names, in any usual plural; of overlapping names the longest counts."""

    def __init__(self, vocabulary: Vocabulary, spoken: Mapping[str, str]) -> None:
        self._own: dict[str, set[str]] = {}
        for entry in vocabulary.classes:
            words = {entry.name, *entry.phrases, *([spoken[entry.name]] if entry.name in spoken else [])}
            told = {entry.name} if is_background(entry.name) else {word.casefold() for word in words}
            self._own[entry.name] = told
        every = sorted({word for told in self._own.values() for word in told}, key=len, reverse=True)
        forms = "|".join(re.escape(word) for word in every)
        self._pattern = re.compile(rf"(?<![\w-])({forms})(?:e?s)?(?:'s?)?(?!\w)", re.I)

    def __contains__(self, name: str) -> bool:
        return name in self._own

    def rivals_in(self, name: str, sentence: str) -> list[str]:
        """Return the words by which a sentence names other classes."""
        found = [match[1].casefold() for match in self._pattern.finditer(sentence)]
        return [word for word in dict.fromkeys(found) if word not in self._own[name]]

    def without_own(self, name: str, sentence: str) -> list[str]:
        """Return the words of a sentence, the class's own names replaced by one sign."""
        own = self._own[name]

        def hide(match: re.Match[str]) -> str:
            return _OWN if match[1].casefold() in own else match[0]

        return re.findall(r"[\w'-]+", self._pattern.sub(hide, sentence).casefold())


def _review_one(
    name: str, sentences: Sequence[str], names: _Names, count_tokens: CountTokens, rules: ReviewRules
) -> Iterator[Finding]:
    if not sentences:
        yield Finding(name, "has no sentence")
        return
    if not rules.least <= len(sentences) <= rules.most:
        yield Finding(name, f"has {len(sentences)} sentences, and not {rules.least} to {rules.most}")
    for sentence, tokens in zip(sentences, count_tokens(sentences), strict=True):
        for fault in _faults(name, sentence, names, rules):
            yield Finding(name, fault, sentence)
        if tokens > rules.max_tokens:
            yield Finding(name, f"has {tokens} tokens, and the text tower reads {rules.max_tokens}", sentence)


def _faults(name: str, sentence: str, names: _Names, rules: ReviewRules) -> Iterator[str]:
    words = sentence.split()
    if sentence != " ".join(words):
        yield "has a line end, or spaces that say nothing"
    if not sentence.endswith(".") or not sentence[:1].isupper():
        yield "is no sentence from a capital letter to a full stop"
    if not 4 <= len(words) <= rules.max_words:
        yield f"has {len(words)} words, and not 4 to {rules.max_words}"
    if _OWN not in names.without_own(name, sentence):
        yield "does not say which class it is about, and is encoded by itself"
    rivals = names.rivals_in(name, sentence)
    if rivals:
        yield f"names a rival ({', '.join(rivals)})"


def _alike(descriptions: Mapping[str, Sequence[str]], names: _Names, rules: ReviewRules) -> Iterator[Finding]:
    """Yield sentences that say what another one says, own names apart."""
    said = _said(descriptions, names)
    for place, sentence in enumerate(said):
        yield from _repeats(sentence, said[:place], rules)


def _said(descriptions: Mapping[str, Sequence[str]], names: _Names) -> list[_Said]:
    return [
        (name, sentence, frozenset(names.without_own(name, sentence)))
        for name, sentences in descriptions.items()
        for sentence in sentences
    ]


def _repeats(said: _Said, before: Sequence[_Said], rules: ReviewRules) -> Iterator[Finding]:
    name, sentence, words = said
    for other, _, others in before:
        if len(words & others) >= rules.likeness * len(words | others):
            yield Finding(name, f"says what a sentence of {other!r} says", sentence)


def _monotonous(
    descriptions: Mapping[str, Sequence[str]], names: _Names, rules: ReviewRules
) -> Iterator[Finding]:
    """Yield ways to begin a sentence that are used too often."""
    openings: Iterable[tuple[str, ...]] = (
        tuple(names.without_own(name, sentence)[:_OPENING])
        for name, sentences in descriptions.items()
        for sentence in sentences
    )
    for opening, count in Counter(openings).items():
        if count > rules.same_opening:
            yield Finding(" ".join(opening), f"begins {count} sentences, more than {rules.same_opening}")
