"""What a user may set about a labelling run: columns beside the masks, a part of the corpus, words of each image."""

from dataclasses import dataclass, fields
from typing import Literal

from ovss_core.errors import ConfigError
from ovss_core.vocabulary import MAX_CLASSES, Vocabulary
from pipelines.run.share import Share

OwnWordsUse = Literal["besides", "instead"]
OwnTemplates = Literal["one", "all"]
NO_VOCABULARY = Vocabulary.from_names(["thing"], "of each image alone")
"""The vocabulary of a run whose images are offered their own words and nothing else; its class is never offered."""


@dataclass(frozen=True)
class OutputOptions:
    """Columns that only some readers want.

    Attributes:
        embed_images: Store each image's own bytes beside its mask, so that the output is a data set by itself.
        carry: Columns of the source that travel along, by commas, such as caption,license,width:int: of a Parquet table,
            keys of the .json beside an image in a shard or folder, txt for the text of the .txt there, or json for the
            whole. A type may follow a colon: string, int, float or bool.
    """

    embed_images: bool = False
    carry: str | None = None


@dataclass(frozen=True)
class PartOptions:
    """Which part of the corpus is labelled; a later run without them goes on to the whole.

    Attributes:
        limit: Label only so many images, the first in the source's order; whole shards of a WebDataset. The same command
            without it goes on to the whole, and keeps what is done.
        sample: The same with images at random. A larger sample of the same seed holds the smaller one.
        seed: Decides which images a sample holds.
        shard: Share of one of several independent jobs, such as 2/8 for the second of eight: each takes its own images
            (whole tables, whole shards) and writes into a folder of its own below --output, where summary.json adds up
            what is there.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    shard: str | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "sample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; give at least 1")
        if self.limit is not None and self.sample is not None:
            raise ConfigError("--limit takes images from the front and --sample at random; give one of them")
        if self.shard is not None:
            Share.parse(self.shard)


@dataclass(frozen=True)
class WordOptions:
    """Words that each image brings along.

    Attributes:
        words_column: Column of the source with each image's own words: of a Parquet table lists of texts, or texts with
            words by commas; a key of the .json beside an image in a shard or folder, or txt for the text of the .txt there.
        caption_column: The same with captions: an image's own words are those of --caption-words that its caption
            names, as whole words, the longest first, plurals included.
        caption_words: Words to look for in captions, given as --vocabulary; unset looks for those of --vocabulary,
            of which an image is then offered what its caption names (--own-words instead).
        own_words: Whether an image's own words join --vocabulary or take its place, but for its background. An image
            without any is offered --vocabulary.
        max_own_words: An image with more words of its own is a failure.
        own_templates: Whether an own word that --vocabulary lacks is encoded in one prompt ("a photo of a ...") or in
            all 80, which takes longer than the image where each image brings new words.
    """

    words_column: str | None = None
    caption_column: str | None = None
    caption_words: str | None = None
    own_words: OwnWordsUse = "besides"
    max_own_words: int = 100
    own_templates: OwnTemplates = "one"

    def __post_init__(self) -> None:
        if self.words_column and self.caption_column:
            raise ConfigError("--words-column and --caption-column both give images words; give one of them")
        if self.caption_words and not self.caption_column:
            raise ConfigError("--caption-words goes with --caption-column; give that, too")
        if not 1 <= self.max_own_words < MAX_CLASSES:
            raise ConfigError(f"max_own_words is {self.max_own_words}; give 1 to {MAX_CLASSES - 1}")
        changed = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
        if changed and not self.given:
            flag = f"--{changed[0].replace('_', '-')}"
            raise ConfigError(f"{flag} goes with --words-column or --caption-column; give one of them")

    @property
    def given(self) -> bool:
        """Whether images bring words along."""
        return bool(self.words_column or self.caption_column)

    @property
    def column(self) -> tuple[str, str]:
        """The flag that was given, and the column."""
        if self.caption_column:
            return "--caption-column", self.caption_column
        return "--words-column", self.words_column or ""
