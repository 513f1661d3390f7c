"""How a run uses the words that images bring along, and which words are known beforehand; free of torch."""

import unicodedata
from dataclasses import dataclass

from ovss_core.errors import ConfigError, VocabularyError
from ovss_core.results import ignore_index
from ovss_core.vocabulary import Vocabulary
from ovss_core.vocabulary_files import is_background
from pipelines.label.options import NO_VOCABULARY, OwnTemplates, OwnWordsUse, WordOptions


@dataclass(frozen=True)
class OwnWords:
    """How a run uses the words that images bring along.

    Attributes:
        use: Whether they join the common vocabulary or take its place.
        common: Classes of the common vocabulary; the first of all that are known.
        captions: Images bring captions, in which known words are looked for.
        most: Own words of an image.
        templates: Prompts of words that are not known.
        column: Of the batches: lists of texts, texts with words by commas, or captions.
    """

    use: OwnWordsUse = "besides"
    common: int = 0
    captions: bool = False
    most: int = 100
    templates: OwnTemplates = "one"
    column: str = "own_words"

    @classmethod
    def of(cls, options: WordOptions, vocabulary: Vocabulary) -> "OwnWords | None":
        """Take up a run's options; None where images bring no words."""
        if not options.given:
            return None
        return cls(
            options.own_words,
            0 if vocabulary == NO_VOCABULARY else len(vocabulary),
            options.caption_column is not None,
            options.max_own_words,
            options.own_templates,
        )

    @property
    def largest(self) -> int:
        """Classes of the largest vocabulary that an image may be offered."""
        # instead: a background stays, and an image without words is offered what is common
        return self.common + self.most if self.use == "besides" else max(self.common, self.most + 1)

    @property
    def ignore_index(self) -> int:
        """The value of pixels without a label, the same in all masks of a run."""
        return ignore_index(self.largest)


def known_words(vocabulary: Vocabulary, options: WordOptions) -> Vocabulary:
    """Return what the driver encodes: the common vocabulary, and behind it what is looked for in captions.

    A word for captions that stands for a common class already is that class.

    Raises:
        VocabularyError: The words for captions are no vocabulary.
        ConfigError: Captions, and no words to look for in them; or all that they may name is offered anyway.
    """
    if not options.caption_column:
        return vocabulary
    if not options.caption_words:
        if vocabulary == NO_VOCABULARY:
            raise ConfigError(
                "--caption-column looks for words in captions; give them as --caption-words or --vocabulary"
            )
        if options.own_words == "besides":
            raise ConfigError(
                "captions that are read for the words of --vocabulary add nothing to it; give --own-words instead, or "
                "more words as --caption-words"
            )
        return vocabulary
    try:
        named = Vocabulary.load(options.caption_words)
    except VocabularyError as error:  # --vocabulary names one as well
        raise VocabularyError(f"--caption-words: {error}") from error
    common = () if vocabulary == NO_VOCABULARY else vocabulary.classes
    taken = {word_key(text) for entry in common for text in (entry.name, *entry.phrases)}
    new = [
        entry
        for entry in named.classes
        if not is_background(entry.name)
        and not taken & {word_key(text) for text in (entry.name, *entry.phrases)}
    ]
    return Vocabulary((*common, *new), vocabulary.name if common else named.name)


def plain_word(text: str) -> str:
    """Return a word as it is named: in lower case, with single spaces, and without signs that cannot be printed."""
    readable = "".join(sign if sign.isprintable() else " " for sign in unicodedata.normalize("NFC", text))
    return " ".join(readable.lower().split())


def word_key(text: str) -> str:
    """Return what two words have in common that the text tower cannot tell apart."""
    return plain_word(text).casefold()
